//! Resolution on small made-up universes: what is chosen, and what is said where nothing can be.

use proptest::prelude::*;

use super::index::{IndexFile, LocalPackage, Universe};
use super::resolve::{Request, resolve};
use super::version::Version;
use crate::arch::Arch;
use crate::digest::Digest;
use crate::system::{Package, Pin, Set};

/// A `Packages` text: each line is `name version; Field: value; …`.
fn index(suite: &str, lines: &str) -> IndexFile {
    let mut text = String::new();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut parts = line.split("; ");
        let (name, version) = parts.next().unwrap().split_once(' ').unwrap();
        let digest = Digest::of(format!("{name} {version}").as_bytes());
        text += &format!("Package: {name}\nVersion: {version}\nArchitecture: amd64\nPriority: optional\n");
        text += &format!("Filename: pool/{name}.deb\nSize: 1\nSHA256: {digest}\n");
        text += &parts.map(|field| format!("{field}\n")).collect::<String>();
        text += "\n";
    }
    let backports = suite.ends_with("-backports");
    IndexFile {
        archive: "debian".into(),
        suite: suite.into(),
        component: "main".into(),
        arch: "amd64".into(),
        text,
        not_automatic: backports,
        but_automatic_upgrades: backports,
        ..IndexFile::default()
    }
}

/// What the profile asks for: `name`, `name/suite` or `name=version`.
fn wanted(items: &str) -> Set<Package> {
    let item = |item: &str| {
        let mut package = Package { enable: true, ..Package::default() };
        let mut name = item.to_owned();
        if let Some((before, suite)) = item.split_once('/') {
            (name, package.suite) = (before.into(), Some(suite.into()));
        } else if let Some((before, version)) = item.split_once('=') {
            (name, package.version) = (before.into(), Some(version.into()));
        }
        (name, package)
    };
    items.split_whitespace().map(item).collect()
}

fn run(files: &[IndexFile], items: &str, recommends: bool, pins: &[(&str, Pin)]) -> String {
    let universe = Universe::new(files, Arch::Amd64).unwrap();
    let pins: Set<Pin> = pins.iter().map(|(name, pin)| ((*name).to_owned(), pin.clone())).collect();
    let request = Request { wanted: &wanted(items), recommends, pins: &pins, essential: true };
    match resolve(&universe, &request) {
        Ok(locked) => {
            locked.iter().map(|p| format!("{}={}", p.name, p.version)).collect::<Vec<_>>().join(" ")
        }
        Err(error) => error.to_string(),
    }
}

/// Resolves against one suite, without recommended packages.
fn simple(lines: &str, items: &str) -> String {
    run(&[index("trixie", lines)], items, false, &[])
}

#[test]
fn alternatives_and_provides() {
    let lines = "
        app 1; Depends: mta | mail, lib (>= 2)
        exim 1; Provides: mail
        postfix 1; Provides: mta (= 3); Conflicts: mail
        lib 2
        lib 1";
    assert_eq!(simple(lines, "app"), "app=1 lib=2 postfix=1");
    assert_eq!(
        simple(lines, "app exim"),
        "app=1 exim=1 lib=2",
        "what is asked for is an alternative already taken"
    );
    assert_eq!(simple("a 1; Depends: v (>= 2)\nb 1; Provides: v\nc 1; Provides: v (= 2)", "a"), "a=1 c=1");
}

#[test]
fn a_real_package_goes_before_its_providers_and_the_later_named_one_before_its_equals() {
    assert_eq!(simple("a 1; Depends: v\nb 1; Provides: v\nv 1", "a"), "a=1 v=1");
    assert_eq!(simple("a 1; Depends: v\nb 1; Provides: v\nc 1; Provides: v", "a"), "a=1 c=1");
    assert_eq!(simple("a 1; Depends: v; Suggests: c\nb 1; Provides: v\nc 1; Provides: v", "a"), "a=1 b=1");
    assert_eq!(simple("a 1; Depends: v\nb 1; Provides: v; Important: yes\nc 1; Provides: v", "a"), "a=1 b=1");
}

#[test]
fn essential_recommended_and_multi_arch() {
    let lines = "
        base 1; Essential: yes; Pre-Depends: libc
        libc 1
        app 1; Recommends: extra, nowhere; Depends: python:any
        extra 1
        python 3; Multi-Arch: allowed";
    let files = [index("trixie", lines)];
    assert_eq!(run(&files, "app", false, &[]), "app=1 base=1 libc=1 python=3");
    assert_eq!(run(&files, "app", true, &[]), "app=1 base=1 extra=1 libc=1 python=3");
}

#[test]
fn suites_versions_and_pins() {
    let files = [
        index("trixie", "app 1; Depends: lib (>= 1)\nlib 1\ntool 5"),
        index("trixie-backports", "app 2; Depends: lib (>= 2)\nlib 2\nlib 1.5\ntool 6"),
    ];
    assert_eq!(run(&files, "app tool", false, &[]), "app=1 lib=1 tool=5");
    assert_eq!(run(&files, "app/trixie-backports tool", false, &[]), "app=2 lib=2 tool=5");
    assert_eq!(run(&files, "lib=1.*", false, &[]), "lib=1.5");
    let pin = |suite: &str, priority| Pin { suite: Some(suite.into()), version: None, priority };
    assert_eq!(run(&files, "app tool", false, &[("*", pin("trixie-backports", 600))]), "app=2 lib=2 tool=6");
    let pins = [("to*", pin("trixie-backports", 600)), ("tool", pin("trixie", 700))];
    assert_eq!(run(&files, "tool", false, &pins), "tool=5");
}

#[test]
fn a_package_of_the_profile_goes_before_the_archives() {
    let control = "Package: app\nVersion: 0.9\nArchitecture: all\nDepends: lib".to_owned();
    let local = LocalPackage { control, path: "debs/app.deb".into(), size: 7, sha256: Digest::of(b"app") };
    let files = [index("trixie", "app 1\nlib 1"), IndexFile::local(&[local])];
    let universe = Universe::new(&files, Arch::Amd64).unwrap();
    let (wanted, pins) = (wanted("app"), Set::new());
    let request = Request { wanted: &wanted, recommends: false, pins: &pins, essential: true };
    let locked = resolve(&universe, &request).unwrap();
    assert_eq!(
        (locked[0].archive.as_str(), locked[0].path.as_str(), locked[0].size),
        ("local", "debs/app.deb", 7)
    );
    assert_eq!((locked[0].manual, locked[1].manual), (true, false));
}

#[test]
fn the_sat_solver_takes_over() {
    // First come, first served leads astray: `x` is taken before it turns out that `b` can't be beside it.
    let lines = "
        a 1; Depends: p
        p 1; Depends: x | y
        b 1; Depends: q | r
        q 1; Conflicts: x; Depends: z
        r 1; Conflicts: x
        x 1
        y 1
        z 1; Conflicts: a";
    assert_eq!(simple(lines, "a b"), "a=1 b=1 p=1 r=1 y=1");
}

#[test]
fn malformed_indexes_are_refused_with_their_line() {
    let broken = |text: &str| {
        let files = [IndexFile { text: text.into(), ..index("trixie", "") }];
        Universe::new(&files, Arch::Amd64).unwrap_err().to_string()
    };
    assert_eq!(
        broken("Package: a\nVersion: 1\nArchitecture: all\n\nPackage: b\nnonsense\n"),
        "the package index debian trixie/main, line 6: `nonsense` is no `Field: value`"
    );
    assert_eq!(
        broken("Package: a\nVersion: 1\n"),
        "the package index debian trixie/main, line 1: the package has no Architecture"
    );
}

/// Universes and wishes that have no solution, and what is said of each.
const UNSOLVABLE: &[(&str, &str, &str)] = &[
    ("a typing mistake", "postgresql 1\nposix 1", "postgersql"),
    ("a virtual package", "exim 1; Provides: mta\npostfix 1; Provides: mta", "mta"),
    ("a version that is not there", "app 2\napp 1", "app=3"),
    ("a suite that lacks it", "app 2", "app/trixie-backports"),
    (
        "something missing far below",
        "app 1; Depends: lib\nlib 2; Depends: deep (>= 3) | other\ndeep 1",
        "app",
    ),
    ("only provided without a version", "app 1; Depends: api (>= 2)\nimpl 1; Provides: api", "app"),
    ("only in backports", "app 1; Depends: kernel (>= 6)\nkernel 5\n@trixie-backports\nkernel 6", "app"),
    ("two that are asked for", "a 1; Conflicts: b\nb 1", "a b"),
    (
        "two that are inevitable",
        "a 1; Depends: x\nx 1; Depends: y\nb 1; Pre-Depends: z\nz 1; Breaks: y (<< 2)\ny 1",
        "a b",
    ),
    ("alternatives all excluded", "a 1; Depends: x | y\nx 1; Conflicts: b\ny 1\nb 1; Conflicts: y", "a b"),
    (
        "an essential package",
        "base 1; Essential: yes\na 1; Depends: v\nw 1; Provides: v; Conflicts: base",
        "a",
    ),
    ("a malformed relationship", "a 1; Depends: b\nb 1; Depends: c (>> )", "a"),
    (
        "an unsolvable knot",
        "a 1; Depends: p | q, r | s\np 1; Conflicts: r, s\nq 1; Conflicts: r, s\nr 1\ns 1",
        "a",
    ),
    ("several at once", "app 1; Depends: nowhere\nlib 1", "app lbi"),
];

#[test]
fn unsolvable_sets_are_explained() {
    let mut told = String::new();
    for (title, lines, items) in UNSOLVABLE {
        let files: Vec<_> = match lines.split_once("@trixie-backports\n") {
            Some((stable, backports)) => vec![index("trixie", stable), index("trixie-backports", backports)],
            None => vec![index("trixie", lines)],
        };
        told += &format!("## {title}: {items}\n{}\n\n", run(&files, items, false, &[]));
    }
    insta::assert_snapshot!(told);
}

/// A random universe of packages `a` to `h`, with random relationships among them.
fn universes() -> impl Strategy<Value = String> {
    let name = "[a-j]";
    let relation = (name, prop::option::of((prop::sample::select(vec!["<<", ">=", "="]), 1..4))).prop_map(
        |(name, range)| match range {
            Some((operator, version)) => format!("{name} ({operator} {version})"),
            None => name,
        },
    );
    let field = (
        prop::sample::select(vec!["Depends", "Pre-Depends", "Recommends", "Conflicts", "Breaks"]),
        prop::collection::vec(relation, 1..3),
    )
        .prop_map(|(field, names)| match field {
            "Conflicts" | "Breaks" => format!("; {field}: {}", names.join(", ")),
            _ => format!("; {field}: {}", names.join(" | ")),
        });
    let package =
        ("[a-h]", 1..4, prop::collection::btree_map("[A-Z]", field, 0..3), prop::option::of("[i-j]"));
    let line = package.prop_map(|(name, version, fields, provides)| {
        let fields: String = fields.into_values().collect();
        format!("{name} {version}{fields}{}", provides.map_or(String::new(), |p| format!("; Provides: {p}")))
    });
    prop::collection::vec(line, 4..16).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever comes out is complete and free of conflicts, holds what was asked for, and comes out twice.
    #[test]
    fn solutions_are_sound(lines in universes(), recommends: bool) {
        let files = [index("trixie", &lines)];
        let universe = Universe::new(&files, Arch::Amd64).unwrap();
        let (wanted, pins) = (wanted("a b"), Set::new());
        let request = Request { wanted: &wanted, recommends, pins: &pins, essential: true };
        let Ok(locked) = resolve(&universe, &request) else { return Ok(()) };
        prop_assert_eq!(&locked, &resolve(&universe, &request).unwrap());
        prop_assert!(locked.iter().filter(|p| p.manual).map(|p| p.name.as_str()).eq(["a", "b"]));
        let cache = super::dependencies::Cache::new(&universe);
        let chosen: Vec<_> = locked
            .iter()
            .map(|p| {
                let versions = universe.versions(universe.find(&p.name).unwrap());
                versions.iter().copied().find(|v| universe.entry(*v).version == p.version).unwrap()
            })
            .collect();
        for &entry in &chosen {
            let dependencies = cache.of(entry);
            for (need, group) in dependencies.needs.iter().filter(|(need, _)| need.is_critical()) {
                let met = group.iter().any(|r| universe.satisfying(r).any(|id| chosen.contains(&id)));
                prop_assert!(met, "{} {} {:?}", universe.name_of(entry), need.verb(), group);
            }
            for (_, relation) in &dependencies.against {
                prop_assert!(!cache.excluded(entry, relation).any(|id| chosen.contains(&id)));
            }
        }
    }

    /// The newest version is the candidate where nothing else is said.
    #[test]
    fn the_newest_is_chosen(versions in prop::collection::btree_set("[1-9](\\.[0-9]){0,2}", 1..5)) {
        let lines: Vec<_> = versions.iter().map(|version| format!("a {version}")).collect();
        let newest = versions.iter().max_by_key(|v| Version(v)).unwrap();
        prop_assert_eq!(simple(&lines.join("\n"), "a"), format!("a={newest}"));
    }
}
