(import '(com.sun.net.httpserver HttpServer HttpHandler) '(java.net InetSocketAddress))
(def server (HttpServer/create (InetSocketAddress. "127.0.0.1" (Integer/parseInt (first *command-line-args*))) 100))
(.createContext server "/"
  (reify HttpHandler
    (handle [_ exchange]
      (let [body (.getBytes (str "peer " (.getPort (.getRemoteAddress exchange)) "\n"))]
        (.sendResponseHeaders exchange 200 (count body))
        (.write (.getResponseBody exchange) body)
        (.close exchange)))))
(.start server)
