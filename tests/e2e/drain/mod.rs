//! Nobody who is being served loses the answer when workers go.

mod cases;
mod matrix;
mod others;
mod shared_server;
