//! apt inside the image: the profile's archives and pins, so that the image can be upgraded in place.
//!
//! Where the build took its bytes from is no property of the image: the public address stands here, or the first of
//! the mirrors that the profile itself names.

use crate::rootfs::SourceFiles;
use crate::rootfs::editor::Editor;
use crate::rootfs::error::RootfsError;
use crate::system::{Source, System};

/// The public alias of Debian's archive; it never goes away.
const PUBLIC: &str = "http://ftp.debian.org";
/// Debian's own keys, by the names that debian-archive-keyring has given them.
const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.pgp", "/usr/share/keyrings/debian-archive-keyring.gpg"];

/// Writes sources.list(5) in its deb822 style, a file a source, and apt_preferences(5).
pub(super) fn apply(
    editor: &mut Editor,
    system: &System,
    sources: &dyn SourceFiles,
) -> Result<(), RootfsError> {
    if !editor.has("/usr/bin/apt") {
        return Ok(());
    }
    editor.remove("/etc/apt/sources.list");
    for (name, source) in system.sources.iter().filter(|(_, s)| s.enable) {
        let signed_by = signed_by(editor, name, source, sources)?;
        let Some(stanza) = stanza(source, signed_by.as_deref()) else {
            let why = "no address, so apt in the image doesn't know it: give mirrors";
            editor.warnings.push(format!("sources.{name} has {why}"));
            continue;
        };
        editor.write(
            &format!("sources.{name}"),
            &format!("/etc/apt/sources.list.d/{name}.sources"),
            stanza,
        )?;
    }
    pins(editor, system)
}

/// The `Signed-By` of a source. Keys of the profile's own are put into the image.
fn signed_by(
    editor: &mut Editor,
    name: &str,
    source: &Source,
    sources: &dyn SourceFiles,
) -> Result<Option<String>, RootfsError> {
    if source.keys.is_empty() {
        let ring = KEYRINGS.iter().find(|path| editor.has(path));
        return Ok(ring.map(|path| (*path).to_owned()));
    }
    let mut paths = Vec::new();
    for (index, key) in source.keys.iter().enumerate() {
        let field = format!("sources.{name}.keys");
        let wrong = |error| RootfsError::Source { field: field.clone(), name: key.clone(), error };
        let bytes = sources.key(key).map_err(wrong)?;
        let suffix = if bytes.starts_with(b"-----BEGIN") { "asc" } else { "pgp" };
        let number = if index == 0 { String::new() } else { format!("-{}", index + 1) };
        let path = format!("/etc/apt/keyrings/{name}{number}.{suffix}");
        editor.write(&field, &path, bytes)?;
        paths.push(path);
    }
    Ok(Some(paths.join(", ")))
}

/// The stanza of a source; `None` when nothing public is known about where it lies.
fn stanza(source: &Source, signed_by: Option<&str>) -> Option<String> {
    let own = source.mirrors.first().map(|url| url.trim_end_matches('/').to_owned());
    let public = matches!(source.archive.as_str(), "debian" | "debian-security");
    let url = own.or(public.then(|| format!("{PUBLIC}/{}", source.archive)))?;
    let pockets =
        source.pockets.iter().filter(|(_, on)| **on).map(|(pocket, _)| format!(" {}-{pocket}", source.suite));
    let mut text =
        format!("Types: deb\nURIs: {url}\nSuites: {}{}\n", source.suite, pockets.collect::<String>());
    // A suite that is a path (`./`) has no components.
    if !source.suite.ends_with('/') {
        text.push_str(&format!("Components: {}\n", source.components.join(" ")));
    }
    if let Some(path) = signed_by {
        text.push_str(&format!("Signed-By: {path}\n"));
    }
    Some(text)
}

/// The profile's pins, so that apt in the image decides as the lock's resolver did.
fn pins(editor: &mut Editor, system: &System) -> Result<(), RootfsError> {
    let mut text = String::new();
    for (package, pin) in &system.pins {
        let what = match (&pin.version, &pin.suite) {
            (Some(version), None) => format!("version {version}"),
            (None, Some(suite)) => format!("release n={suite}"),
            (None, None) => "release *".to_owned(),
            (Some(_), Some(_)) => {
                let why = "a pin names a version or a suite, not both";
                return Err(RootfsError::value(format!("pins.\"{package}\""), package, why));
            }
        };
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&format!("Package: {package}\nPin: {what}\nPin-Priority: {}\n", pin.priority));
    }
    if text.is_empty() { Ok(()) } else { editor.write("pins", "/etc/apt/preferences.d/60-kiln", text) }
}
