//! The base URLs in the host's own apt sources (sources.list(5)): one-line `.list` files and deb822 `.sources`.

use std::fs;
use std::path::Path;

/// The base URLs of binary packages that apt on this host is configured with, in apt's order. `etc` is `/etc/apt`.
/// Whatever can't be read is left out: these are only hints.
pub(super) fn bases(etc: &Path) -> Vec<String> {
    let mut files = vec![etc.join("sources.list")];
    let mut parts: Vec<_> =
        fs::read_dir(etc.join("sources.list.d")).into_iter().flatten().flatten().map(|e| e.path()).collect();
    parts.sort();
    files.append(&mut parts);
    let mut found = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|e| e.to_str()) {
            Some("list") => found.extend(text.lines().filter_map(one_line)),
            Some("sources") => found.extend(deb822(&text)),
            _ => {}
        }
    }
    found.retain(|url| ["http://", "https://", "file:"].iter().any(|scheme| url.starts_with(scheme)));
    found
}

/// `deb [option=value …] URI SUITE …`
fn one_line(line: &str) -> Option<String> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    rest.starts_with([' ', '\t', '[']).then_some(())?;
    let rest = rest.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    rest.split_ascii_whitespace().next().map(str::to_owned)
}

/// Stanzas with `Types`, `URIs` and perhaps `Enabled: no`.
fn deb822(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let lines = text.lines().filter(|l| !l.starts_with('#')).collect::<Vec<_>>();
    for stanza in lines.split(|l| l.trim().is_empty()) {
        let (mut types, mut uris, mut enabled) = (String::new(), String::new(), String::new());
        let mut current = None;
        for line in stanza {
            let value = if line.starts_with([' ', '\t']) {
                line
            } else {
                let Some((name, value)) = line.split_once(':') else { continue };
                current = Some(name.to_ascii_lowercase());
                value
            };
            let field = match current.as_deref() {
                Some("types") => &mut types,
                Some("uris") => &mut uris,
                Some("enabled") => &mut enabled,
                _ => continue,
            };
            field.push(' ');
            field.push_str(value);
        }
        let off = matches!(
            enabled.trim().to_ascii_lowercase().as_str(),
            "no" | "false" | "off" | "0" | "without" | "disable"
        );
        if !off && types.split_ascii_whitespace().any(|t| t == "deb") {
            found.extend(uris.split_ascii_whitespace().map(str::to_owned));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let etc = tempfile::tempdir().unwrap();
        let parts = etc.path().join("sources.list.d");
        fs::create_dir(&parts).unwrap();
        fs::write(
            etc.path().join("sources.list"),
            "# deb http://commented/debian trixie main\n\
             deb [arch=amd64 signed-by=/k.gpg] http://one/debian trixie main # why\n\
             deb-src http://source/debian trixie main\n\
             deb cdrom:[Disc]/ trixie main\n\
             deb mirror+file:/etc/mirrors trixie main\n",
        )
        .unwrap();
        fs::write(
            parts.join("b.sources"),
            "Types: deb deb-src\n# note\nURIs: http://two/debian\n http://three/debian/\nSuites: trixie\n\n\
             Types: deb\nURIs: http://off/debian\nEnabled: no\n\nTypes: deb-src\nURIs: http://source/debian\n",
        )
        .unwrap();
        fs::write(parts.join("a.list"), "deb file:/srv/debian trixie main\n").unwrap();
        fs::write(parts.join("c.list.bak"), "deb http://backup/debian trixie main\n").unwrap();
        let found = bases(etc.path());
        assert_eq!(
            found,
            ["http://one/debian", "file:/srv/debian", "http://two/debian", "http://three/debian/"]
        );
        assert_eq!(bases(Path::new("/nowhere")), Vec::<String>::new());
    }
}
