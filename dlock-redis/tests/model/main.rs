//! The model check: random walks over a model of nodes, clients and everything that may befall them.
//!
//! A world has one, three or five nodes, each with a replica where the scenario says so, and three clients. In each step a
//! clock ticks, a message arrives, is lost or arrives a first time of two, a client begins, gives up, renews or releases, a
//! node loses its data or gets an older copy back, a replica takes over, an old master serves on or follows. The scripts
//! are modelled line by line (`server.rs`), and so are the client's rules (`client.rs`). Checked is what dlock promises: no
//! two holds that are certain overlap (P1), and tokens are unique and greater than those of all acquisitions that were
//! complete before (P2).
//!
//! `sound.rs` shows that no walk breaks a promise, and `broken.rs` that walks find out every way in which the algorithm
//! could have been written wrong. `exhaustive.rs` leaves nothing to chance, in worlds that are small enough. So a change of the scripts or of the client's rules belongs here as well.
//!
//! A walk that breaks a promise is told step by step when the test fails. `DLOCK_MODEL_STEPS=100` makes the sound ones a
//! hundred times longer, `DLOCK_MODEL_SEED=7` makes other walks:
//!
//! ```sh
//! DLOCK_MODEL_STEPS=100 cargo test --release -p dlock-redis --test model
//! ```

mod broken;
mod check;
mod claims;
mod client;
mod event;
mod exhaustive;
mod faults;
mod hunt;
mod post;
mod prologue;
mod random;
mod scenario;
mod server;
mod sound;
mod variant;
mod walk;
mod world;
