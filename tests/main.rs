//! Fast tests of the whole program: no network, no root, no virtual machine. One module a topic.

mod docs;
mod reference;
