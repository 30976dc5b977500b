;; server.lisp PORT: answers with the client's port.
(require :sb-bsd-sockets)
(let ((server (make-instance 'sb-bsd-sockets:inet-socket :type :stream :protocol :tcp))
      (port (parse-integer (second sb-ext:*posix-argv*))))
  (setf (sb-bsd-sockets:sockopt-reuse-address server) t)
  (sb-bsd-sockets:socket-bind server #(127 0 0 1) port)
  (sb-bsd-sockets:socket-listen server 100)
  (loop
    (multiple-value-bind (client address peer) (sb-bsd-sockets:socket-accept server)
      (declare (ignore address))
      (let ((stream (sb-bsd-sockets:socket-make-stream client :input t :output t)))
        (loop for line = (read-line stream nil "") until (<= (length line) 1))
        (format stream "HTTP/1.1 200 OK~C~%Connection: close~C~%~C~%peer ~D~%" #\Return #\Return #\Return peer)
        (close stream)))))
