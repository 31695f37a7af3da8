//! What a machine calls itself and how it speaks: host name, time zone, locale, keyboard, os-release.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::rootfs::SandboxWork;
use crate::rootfs::editor::Editor;
use crate::rootfs::error::RootfsError;
use crate::rootfs::near::Near;
use crate::system::System;
use crate::tree::Kind;

/// All of it.
pub(super) fn apply(editor: &mut Editor, system: &System, work: &mut SandboxWork) -> Result<(), RootfsError> {
    hostname(editor, system)?;
    timezone(editor, system)?;
    locale(editor, system, work)?;
    keyboard(editor, system)?;
    os_release(editor, system)
}

/// hostname(5) and hosts(5). Without a name the file is absent, so that DHCP or cloud-init may give one.
fn hostname(editor: &mut Editor, system: &System) -> Result<(), RootfsError> {
    let name = &system.hostname;
    let mut hosts = "127.0.0.1 localhost\n".to_owned();
    if name.is_empty() {
        editor.remove("/etc/hostname");
    } else {
        let why = "a host name has letters, digits and `-` between dots: at most 63 in a label, 64 in all";
        if !is_hostname(name) || name.len() > 64 {
            return Err(RootfsError::value("hostname", name, why));
        }
        editor.write("hostname", "/etc/hostname", format!("{name}\n"))?;
        let short = name.split('.').next().unwrap_or(name);
        let both = if short == name { name.clone() } else { format!("{name} {short}") };
        // 127.0.1.1 is Debian's convention for a machine without a permanent address (Debian Reference 5.1.1).
        hosts.push_str(&format!("127.0.1.1 {both}\n"));
    }
    hosts.push_str(
        "\n::1 localhost ip6-localhost ip6-loopback\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n",
    );
    if !system.network.hosts.is_empty() {
        hosts.push('\n');
    }
    for (host, address) in &system.network.hosts {
        let field = format!("network.hosts.\"{host}\"");
        if !is_hostname(host) {
            return Err(RootfsError::value(field, host, "its name is no host name"));
        }
        let parsed: Result<IpAddr, _> = address.parse();
        parsed.map_err(|_| RootfsError::value(field, address, "an IPv4 or IPv6 address is expected"))?;
        hosts.push_str(&format!("{address} {host}\n"));
    }
    editor.write("hostname", "/etc/hosts", hosts)
}

/// Labels of letters, digits and hyphens (RFC 1123, 2.1), underscores allowed as resolvers do.
fn is_hostname(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let label = |l: &str| {
        (1..=63).contains(&l.len()) && l.chars().all(inner) && !l.starts_with('-') && !l.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// localtime(5).
fn timezone(editor: &mut Editor, system: &System) -> Result<(), RootfsError> {
    let zone = &system.timezone;
    let utc = ["UTC", "Etc/UTC"].contains(&zone.as_str());
    if !editor.is_dir("/usr/share/zoneinfo") {
        if !utc {
            let (field, what) = (format!("timezone = {zone:?}"), "/usr/share/zoneinfo".to_owned());
            return Err(RootfsError::NeedsPackage { field, what, package: "tzdata" });
        }
        // Without the link, the C library uses UTC.
        editor.remove("/etc/localtime");
        return Ok(());
    }
    let plain = !zone.is_empty() && zone.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !plain || editor.content(&format!("/usr/share/zoneinfo/{zone}")).is_none() {
        let zones = zones(editor);
        let near = Near::of(zone, zones.iter().map(String::as_str));
        let why = format!("there is no such time zone{near} (old names are in the package tzdata-legacy)");
        return Err(RootfsError::value("timezone", zone, why));
    }
    editor.link("timezone", "/etc/localtime", &format!("/usr/share/zoneinfo/{zone}"))?;
    // Debian's tzdata kept the name here as well until version 2024b.
    if editor.has("/etc/timezone") {
        editor.write("timezone", "/etc/timezone", format!("{zone}\n"))?;
    }
    Ok(())
}

fn zones(editor: &Editor) -> BTreeSet<String> {
    let Some(top) = editor.tree().resolve("/usr/share/zoneinfo") else { return BTreeSet::new() };
    let files = editor.tree().below(&top).filter(|(_, node)| node.kind != Kind::Dir);
    let names = files.filter_map(|(path, _)| std::str::from_utf8(&path[top.len() + 1..]).ok());
    names.filter(|n| n.starts_with(|c: char| c.is_ascii_uppercase())).map(str::to_owned).collect()
}

/// locale.conf(5), and the list that `locale-gen` works on.
fn locale(editor: &mut Editor, system: &System, work: &mut SandboxWork) -> Result<(), RootfsError> {
    let further = system.locales.iter().filter(|(_, l)| l.enable).map(|(name, _)| name);
    let names: BTreeSet<&String> =
        further.chain((!system.locale.is_empty()).then_some(&system.locale)).collect();
    let mut lines = BTreeSet::new();
    for name in names.into_iter().filter(|name| !is_built_in(name)) {
        lines.insert(locale_line(editor, name)?);
    }
    // The package locales-all has every locale ready made.
    if !lines.is_empty() && !editor.has("/usr/lib/locale/locale-archive.all") && !has_all_locales(editor) {
        if !editor.has("/usr/sbin/locale-gen") {
            let (field, what) = (format!("locale = {:?}", system.locale), "/usr/sbin/locale-gen".to_owned());
            return Err(RootfsError::NeedsPackage { field, what, package: "locales" });
        }
        let list: String = lines.iter().map(|line| format!("{line}\n")).collect();
        editor.write(
            "locales",
            "/etc/locale.gen",
            format!("# The locales that locale-gen(8) makes.\n{list}"),
        )?;
        work.locales = lines;
    }
    if system.locale.is_empty() {
        return Ok(());
    }
    let text = format!("LANG={}\n", system.locale);
    // Until Debian 12 the file was /etc/default/locale; since 13 that is a link to /etc/locale.conf.
    if matches!(editor.tree().get("/etc/default/locale").map(|n| &n.kind), Some(Kind::File(_))) {
        return editor.write("locale", "/etc/default/locale", text);
    }
    editor.write("locale", "/etc/locale.conf", text)?;
    editor.link("locale", "/etc/default/locale", "../locale.conf")
}

/// Locales that the C library has without files, or that Debian's libc-bin ships.
fn is_built_in(name: &str) -> bool {
    matches!(name, "C" | "POSIX" | "C.UTF-8" | "C.utf8")
}

fn has_all_locales(editor: &Editor) -> bool {
    editor.has("/usr/lib/locale/en_US.utf8/LC_CTYPE") && editor.has("/usr/lib/locale/de_DE.utf8/LC_CTYPE")
}

/// The line of locale.gen(5) for a locale: its name and character set.
fn locale_line(editor: &Editor, name: &str) -> Result<String, RootfsError> {
    let base = name.split('@').next().unwrap_or(name);
    let guess = format!("{name} {}", base.split_once('.').map_or("UTF-8", |(_, charset)| charset));
    let Some(supported) = editor.text("/usr/share/i18n/SUPPORTED")? else { return Ok(guess) };
    let known = |line: &&str| line.split(' ').next() == Some(name);
    match supported.lines().find(known) {
        Some(line) => Ok(line.trim().to_owned()),
        None => {
            let near = Near::of(name, supported.lines().filter_map(|line| line.split(' ').next()));
            let why = format!("/usr/share/i18n/SUPPORTED doesn't have it{near}");
            Err(RootfsError::value("locale", name, why))
        }
    }
}

/// keyboard(5).
fn keyboard(editor: &mut Editor, system: &System) -> Result<(), RootfsError> {
    let keyboard = &system.keyboard;
    let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "_-,".contains(c));
    for (field, value) in [("keyboard.layout", &keyboard.layout), ("keyboard.variant", &keyboard.variant)] {
        if !plain(value) {
            let why = "names of XKB layouts have letters, digits, `_`, `-` and `,`";
            return Err(RootfsError::value(field, value, why));
        }
    }
    let layout = if keyboard.layout.is_empty() { "us" } else { &keyboard.layout };
    let wanted = [format!("XKBLAYOUT=\"{layout}\""), format!("XKBVARIANT=\"{}\"", keyboard.variant)];
    let usual = layout == "us" && keyboard.variant.is_empty();
    let is_set = match editor.text("/etc/default/keyboard")? {
        Some(text) => wanted.iter().all(|line| text.lines().any(|l| l.trim() == line)),
        None => usual,
    };
    if is_set {
        return Ok(());
    }
    if !usual && !editor.has("/usr/bin/setupcon") {
        let what = "nothing in the tree sets the console's keyboard: add packages.console-setup = {}";
        editor.warnings.push(format!("keyboard.layout = {layout:?}, but {what}"));
    }
    // console-setup would go on loading the keymap that it keeps ready for the layout before.
    for file in editor.entries("/etc/console-setup") {
        if file == "cached_setup_keyboard.sh" || (file.starts_with("cached_") && file.ends_with(".kmap.gz")) {
            editor.remove(format!("/etc/console-setup/{file}"));
        }
    }
    let [layout, variant] = wanted;
    let text = format!(
        "# keyboard(5)\nXKBMODEL=\"pc105\"\n{layout}\n{variant}\nXKBOPTIONS=\"\"\nBACKSPACE=\"guess\"\n"
    );
    editor.write("keyboard", "/etc/default/keyboard", text)
}

/// os-release(5): the image's name and version. The file of base-files stays as dpkg knows it; its link in /etc gives
/// way to a copy with two more lines, and comes back when the package is next upgraded.
fn os_release(editor: &mut Editor, system: &System) -> Result<(), RootfsError> {
    let Some(mut text) = editor.text("/usr/lib/os-release")? else { return Ok(()) };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&format!("IMAGE_ID={}\n", quoted(&system.name)));
    if !system.version.is_empty() {
        text.push_str(&format!("IMAGE_VERSION={}\n", quoted(&system.version)));
    }
    editor.write("name", "/etc/os-release", text)
}

/// A value of os-release(5): in quotes unless it is plain, with the shell's special characters escaped.
fn quoted(text: &str) -> String {
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "._-+~".contains(c)) {
        return text.to_owned();
    }
    let mut out = "\"".to_owned();
    for c in text.chars().filter(|c| !c.is_control()) {
        if "\"\\$`".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out + "\""
}
