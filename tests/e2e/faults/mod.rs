//! What becomes of clients that wait in the master when something happens.

mod fifo;
mod full;
mod held;
mod recycling;
mod scene;
