import asyncio
import sys


async def serve(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    body = b"peer %d\n" % writer.get_extra_info("peername")[1]
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


asyncio.run(main())
