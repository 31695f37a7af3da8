//! Fast tests of the whole program: no network, no root, no virtual machine. One module a topic.

mod archives;
mod docs;
mod downloads;
mod export;
mod house;
mod locks;
mod mutated;
mod permissions;
mod profile;
mod reference;
mod server;
mod verbs;
