# server PORT
import std/[asyncdispatch, asynchttpserver, os, strutils]

proc answer(request: Request) {.async.} =
  await request.respond(Http200, "answered\n")

waitFor newAsyncHttpServer(reuseAddr = true).serve(Port(parseInt(paramStr(1))), answer, "127.0.0.1")
