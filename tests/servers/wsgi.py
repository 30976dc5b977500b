import os


def app(environ, start_response):
    body = f"slot {os.environ['ROUNDSMAN_SLOT']} peer {environ['REMOTE_PORT']}".encode()
    start_response("200 OK", [("Content-Length", str(len(body))), ("Connection", "close")])
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    body = f"slot {os.environ['ROUNDSMAN_SLOT']} peer {scope['client'][1]}".encode()
    headers = [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
