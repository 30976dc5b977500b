//! What becomes of clients that wait in the master when something happens.

mod held;
mod scene;
