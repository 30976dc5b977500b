FROM golang:1 AS build
WORKDIR /src
COPY main.go ./
RUN CGO_ENABLED=0 go build -o /server main.go

FROM roundsman
COPY --from=build /server /server
# A Go program does not go through libc: its connections are relayed, and it gets its own port as PORT. In a container with
# no-new-privileges, or with "--via", "direct" below, it gets the clients' sockets themselves.
ENTRYPOINT ["/roundsman", "-i", "max", "-l", "8080", "--"]
CMD ["/server"]
