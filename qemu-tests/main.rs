//! Tests that need the network, root or a virtual machine. One module a topic; each test runs by itself as well:
//! `cargo test --test qemu -- store::a_full_disk`.

mod archive;
mod disk;
mod resolve;
mod rootfs;
mod store;
