# roundsman as a static binary in an image with nothing else, and a source to copy it from:
#
#     FROM node:20
#     COPY --from=roundsman /roundsman /usr/local/bin/roundsman
#     ENTRYPOINT ["roundsman", "-i", "max", "--"]
#     CMD ["node", "app.js"]
FROM rust:1-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
COPY src src
RUN RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target x86_64-unknown-linux-gnu \
    && cp target/x86_64-unknown-linux-gnu/release/roundsman /roundsman \
    && strip /roundsman

FROM scratch
COPY --from=build /roundsman /roundsman
USER 65532:65532
STOPSIGNAL SIGTERM
ENTRYPOINT ["/roundsman"]
CMD ["demo", "--listen", "0.0.0.0:8080"]
