# Untested: no machine that this was written on runs a Docker daemon.
#
#     docker build -t luthier .
#     docker run --rm -it -v "$PWD:/work" -v luthier-models:/models -u "$(id -u):$(id -g)" luthier train run.yaml
#
# /work is the folder that commands run in, /models the cache of the hub. A user of the image's own runs it, not root;
# with `-u` the files in /work belong to who types the command.

FROM rust:1.95.0-slim-bookworm AS build
# The image's own toolchain: rust-toolchain.toml would also ask for rustfmt and clippy.
ENV RUSTUP_TOOLCHAIN=1.95.0
WORKDIR /source
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target \
    cargo build --profile dist --locked --package luthier \
    && install -D target/dist/luthier /image/usr/local/bin/luthier \
    && install -d -m 1777 /image/models /image/work

# glibc, certificates and no shell.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /image/ /
ENV HF_HOME=/models
VOLUME /models
WORKDIR /work
ENTRYPOINT ["/usr/local/bin/luthier"]
CMD ["--help"]
