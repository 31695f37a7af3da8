//! Tests that need the network, root or a virtual machine. One module a topic; each test runs by itself as well:
//! `cargo test --test qemu -- store::a_full_disk`.

mod archive;
mod boot;
mod bake;
mod disk;
mod machine;
mod resolve;
mod rootfs;
mod run;
mod shared_store;
mod store;
