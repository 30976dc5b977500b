//! Containers for real: our image and app images are built by buildah and run by podman with runc. `tests/run --all`.
#![allow(clippy::unwrap_used)]

mod apps;
mod image;
mod kept;
mod limits;
mod orchestrators;
mod package;
mod podman;
#[allow(dead_code, unused_imports)]
#[path = "../e2e/support/mod.rs"]
mod support;
