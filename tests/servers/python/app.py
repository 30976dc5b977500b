"""app.py SERVER PORT: answers with the client's port as that server tells it."""
import signal
import sys
import threading

kind, port = sys.argv[1], int(sys.argv[2])


def app(environ, start_response):
    peer = environ.get("REMOTE_PORT") or environ["peer"]
    body = f"peer {peer}\n".encode()
    start_response("200 OK", [("Content-Length", str(len(body))), ("Content-Type", "text/plain")])
    return [body]


def sanic():
    from sanic import Sanic
    from sanic.response import text

    app = Sanic("app")

    @app.get("/")
    async def answer(request):
        return text(f"peer {request.port}\n")

    app.run(host="127.0.0.1", port=port, single_process=True, access_log=False, motd=False)


def waitress():
    import waitress

    waitress.serve(app, host="127.0.0.1", port=port, _quiet=True)


def cheroot():
    from cheroot import wsgi

    server = wsgi.Server(("127.0.0.1", port), app)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.stop).start())
    server.start()


def gevent():
    from gevent.pywsgi import WSGIServer

    WSGIServer(("127.0.0.1", port), app, log=None).serve_forever()


def eventlet():
    import eventlet.wsgi

    eventlet.wsgi.server(eventlet.listen(("127.0.0.1", port)), app, log_output=False)


def tornado():
    import asyncio

    import tornado.web

    class Main(tornado.web.RequestHandler):
        def get(self):
            self.write(f"peer {self.request.connection.stream.socket.getpeername()[1]}\n")

    async def main():
        tornado.web.Application([("/", Main)]).listen(port, "127.0.0.1")
        await asyncio.Event().wait()

    asyncio.run(main())


def twisted():
    from twisted.internet import reactor
    from twisted.web import resource, server

    class Main(resource.Resource):
        isLeaf = True

        def render_GET(self, request):
            return b"peer %d\n" % request.getClientAddress().port

    reactor.listenTCP(port, server.Site(Main()), interface="127.0.0.1")
    reactor.run()


def aiohttp():
    from aiohttp import web

    async def answer(request):
        return web.Response(text=f"peer {request.transport.get_extra_info('peername')[1]}\n")

    application = web.Application()
    application.router.add_get("/", answer)
    web.run_app(application, host="127.0.0.1", port=port, print=None)


def flask():
    from flask import Flask, request

    application = Flask("app")

    @application.get("/")
    def answer():
        return f"peer {request.environ['REMOTE_PORT']}\n"

    application.run(host="127.0.0.1", port=port)


def django():
    import django.conf
    from django.core.management import execute_from_command_line
    from django.core.servers.basehttp import WSGIRequestHandler
    from django.http import HttpResponse
    from django.urls import path

    # Its handler leaves the port out.
    original = WSGIRequestHandler.get_environ
    WSGIRequestHandler.get_environ = lambda self: original(self) | {"peer": self.client_address[1]}
    django.conf.settings.configure(DEBUG=True, ALLOWED_HOSTS=["*"], ROOT_URLCONF="__main__", SECRET_KEY="x")
    globals()["urlpatterns"] = [path("", lambda request: HttpResponse(f"peer {request.META['peer']}\n"))]
    execute_from_command_line(["manage.py", "runserver", "--noreload", f"127.0.0.1:{port}"])


def wsgiref():
    import wsgiref.simple_server

    class Handler(wsgiref.simple_server.WSGIRequestHandler):
        def get_environ(self):
            return super().get_environ() | {"peer": self.client_address[1]}

        def log_message(self, *rest):
            pass

    wsgiref.simple_server.make_server("127.0.0.1", port, app, handler_class=Handler).serve_forever()


globals()[kind]()
