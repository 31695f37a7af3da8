use super::*;
use crate::tree::{Content, Kind, Node};
use crate::units::GIB;

fn tree(files: &[(&str, u64)]) -> Tree {
    let mut tree = Tree::new();
    tree.insert("", Node::new(Kind::Dir, 0o755, 0));
    for &(path, len) in files {
        let sha256 = crate::digest::Digest([0; 32]);
        let content = Content::Packed { pack: sha256, offset: 0, len, sha256 };
        tree.insert_with_parents(path, Node::new(Kind::File(content), 0o644, 0));
    }
    tree
}

fn disk() -> Disk {
    let (free, esp_size) = (Bytes(256 * MIB), Bytes(64 * MIB));
    Disk { free, esp_size, label: "root".into(), grow: true, ..Disk::default() }
}

fn extra(size: u64, fs: ExtraFs, mount: &str) -> ExtraPartition {
    ExtraPartition { enable: true, size: Bytes(size), type_guid: String::new(), fs, mount: mount.into() }
}

fn request<'a>(disk: &'a Disk, tree: &'a Tree) -> LayoutRequest<'a> {
    LayoutRequest { name: "server", arch: Arch::Amd64, disk, firmware: Firmware::Both, tree }
}

fn server() -> Tree {
    tree(&[("usr/lib/big", 200 * MIB), ("usr/share/doc", 40 * MIB), ("boot/vmlinuz", 12 * MIB), ("etc/x", 5)])
}

#[test]
fn a_usual_disk_as_a_table_and_as_json() {
    let layout = plan(&request(&disk(), &server())).unwrap();
    insta::assert_snapshot!(layout);
    insta::assert_snapshot!(serde_json::to_string_pretty(&layout).unwrap());
    let text = serde_json::to_string(&layout).unwrap();
    assert_eq!(serde_json::from_str::<Layout>(&text).unwrap(), layout);
}

#[test]
fn further_partitions_lie_before_the_root() {
    let mut disk = disk();
    disk.partitions.insert("swap".into(), extra(128 * MIB, ExtraFs::Swap, ""));
    disk.partitions.insert("data".into(), extra(300 * MIB + 512, ExtraFs::Ext4, "/srv/data"));
    disk.partitions.insert("off".into(), ExtraPartition { enable: false, ..extra(GIB, ExtraFs::None, "") });
    let mut tree = server();
    let big = tree.get("usr/lib/big").unwrap().clone();
    tree.insert_with_parents("srv/data/big", big);
    let layout = plan(&request(&disk, &tree)).unwrap();
    insta::assert_snapshot!(layout);
    assert_eq!(layout.mounts().collect::<Vec<_>>(), ["srv/data"]);
    layout.table().check().unwrap();
}

#[test]
fn firmware_decides_which_partitions_there_are() {
    let names = |firmware| {
        let (disk, tree) = (disk(), server());
        let layout = plan(&LayoutRequest { firmware, ..request(&disk, &tree) }).unwrap();
        layout.table().check().unwrap();
        layout.partitions.iter().map(|p| (p.number, p.first.0)).collect::<Vec<_>>()
    };
    assert_eq!(names(Firmware::Bios), [(14, 2048), (1, 4096)]);
    assert_eq!(names(Firmware::Uefi), [(15, 2048), (1, 133_120)]);
    assert_eq!(names(Firmware::Both), [(14, 2048), (15, 4096), (1, 135_168)]);
}

#[test]
fn small_changes_leave_the_geometry_alone() {
    let plan_with = |len| {
        let mut tree = server();
        let more = self::tree(&[("etc/new", len)]).get("etc/new").unwrap().clone();
        tree.insert("etc/new", more);
        plan(&request(&disk(), &tree)).unwrap()
    };
    let plans: Vec<Layout> = [0, 20_000, 1_000_000].into_iter().map(plan_with).collect();
    assert_eq!(plans[0], plans[1]);
    assert_eq!(plans[0], plans[2]);
    assert_eq!(plans[0].size.0 % DISK_STEP.0, 0);
}

#[test]
fn what_is_not_possible_is_said_with_both_numbers() {
    let message = |change: &dyn Fn(&mut Disk)| {
        let mut disk = disk();
        change(&mut disk);
        plan(&request(&disk, &server())).unwrap_err().to_string()
    };
    let with = |name: &str, partition: ExtraPartition| {
        message(&|d: &mut Disk| {
            d.partitions.insert(name.to_owned(), partition.clone());
        })
    };
    let messages = [
        message(&|d| d.size = Some(Bytes(256 * MIB))),
        message(&|d| d.size = Some(Bytes(GIB + 1))),
        message(&|d| d.label = "seventeen letters".into()),
        with("lib", extra(150 * MIB, ExtraFs::Ext4, "/usr/lib")),
        with("tiny", extra(MIB, ExtraFs::Ext4, "")),
        with("none", extra(0, ExtraFs::Swap, "")),
        with("root", extra(MIB, ExtraFs::None, "")),
        with("odd", extra(700, ExtraFs::None, "")),
        with("type", ExtraPartition { type_guid: "linux".into(), ..extra(MIB, ExtraFs::None, "") }),
        message(&|d| {
            d.partitions = (0..13).map(|i| (i.to_string(), extra(MIB, ExtraFs::None, ""))).collect()
        }),
    ];
    insta::assert_snapshot!(messages.join("\n\n"));
}

#[test]
fn a_disk_of_the_size_that_was_demanded_is_accepted() {
    let mut disk = disk();
    disk.size = Some(Bytes(MIB));
    let Err(LayoutError::TooSmall { need, .. }) = plan(&request(&disk, &server())) else {
        panic!("accepted")
    };
    disk.size = Some(need);
    assert_eq!(plan(&request(&disk, &server())).unwrap().size, need);
}
