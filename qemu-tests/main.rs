//! Tests that need the network, root or a virtual machine. One module a topic; each test runs by itself as well:
//! `cargo test --test qemu -- store::a_full_disk`.

mod archive;
mod aws;
mod bake;
mod bookworm;
mod boot;
mod broken;
mod disk;
mod dropped;
mod ec2;
mod elsewhere;
mod images;
mod immutable;
mod inspect;
mod machine;
mod netns;
mod realise;
mod refusals;
mod report_page;
mod resolve;
mod robust;
mod rootfs;
mod run;
#[allow(dead_code)]
#[path = "../tests/server.rs"]
mod server;
mod servers;
mod smoke;
mod store;
mod upgrade;
