# roundsman as a static binary in an image with nothing else, and a source to copy it from: see config/docker.
FROM rust:1-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
COPY src src
# With the target named, the flags are not those of build scripts and procedural macros.
RUN target=$(rustc -vV | sed -n 's/^host: //p') \
    && RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target "$target" \
    && install -D --strip --mode 755 "target/$target/release/roundsman" /image/roundsman \
    && install -d --mode 1777 /image/tmp

FROM scratch
LABEL org.opencontainers.image.title="roundsman" \
      org.opencontainers.image.description="A round-robin TCP load-balancing daemon: one port, many processes" \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
# The program, and /tmp for the control socket.
COPY --from=build /image/ /
USER 65532:65532
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["/roundsman", "health"]
ENTRYPOINT ["/roundsman"]
CMD ["demo", "--listen", "0.0.0.0:8080"]
