//! A daemon goes on as another process.

mod stored;
