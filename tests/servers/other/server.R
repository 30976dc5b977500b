# server.R PORT
port <- as.integer(commandArgs(trailingOnly = TRUE)[1])
answer <- function(request) list(status = 200L, headers = list("Content-Type" = "text/plain"), body = "answered\n")
httpuv::runServer("127.0.0.1", port, list(call = answer))
