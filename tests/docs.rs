//! What README.md and docs/ show is true: files that they point at exist, and commands that run quickly run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md and every page below docs/.
fn pages() -> Vec<(PathBuf, String)> {
    let mut folders = vec![root().join("docs")];
    let mut paths = vec![root().join("README.md"), root().join("CHANGELOG.md")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    for (path, text) in pages() {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.contains(' ') {
                continue;
            }
            if !path.parent().unwrap().join(target).exists() {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The commands in a page's `console` blocks: lines that begin with `$ `, with the lines that they print.
fn sessions(text: &str) -> Vec<(String, Vec<String>)> {
    let mut sessions: Vec<(String, Vec<String>)> = Vec::new();
    for block in text.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next()) {
        for line in block.lines() {
            match (line.strip_prefix("$ "), sessions.last_mut()) {
                (Some(command), _) => sessions.push((command.to_owned(), Vec::new())),
                (None, Some(last)) => last.1.push(line.to_owned()),
                (None, None) => {}
            }
        }
    }
    sessions
}

/// Verbs that need no network, no root and no machine, so that they can be run as they stand.
const QUICK: [&str; 7] = ["--version", "--help", "store", "gc", "completions", "init", "eval"];

#[test]
fn quick_commands_run_as_shown() {
    let mut ran = 0;
    for (page, text) in pages() {
        let folder = tempfile::tempdir().unwrap();
        // Pages name profiles as seen from the repository.
        std::os::unix::fs::symlink(root().join("profiles"), folder.path().join("profiles")).unwrap();
        for (command, _) in sessions(&text) {
            let words: Vec<&str> = command.split_whitespace().collect();
            let plain = !command.contains(['|', '>', '&', ';', '$', '\'', '"', '*']);
            if words.first() != Some(&"kiln") || !plain || !words.get(1).is_some_and(|v| QUICK.contains(v)) {
                continue;
            }
            let output = Command::new(env!("CARGO_BIN_EXE_kiln"))
                .args(&words[1..])
                .current_dir(folder.path())
                .env("KILN_STORE", folder.path().join("store"))
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: `{command}` failed:\n{said}", page.display());
            ran += 1;
        }
    }
    assert!(ran > 0, "no page shows a command that could be run");
}

/// Every verb that a page shows exists, with the options that it is shown with.
#[test]
fn shown_commands_parse() {
    for (page, text) in pages() {
        for (line, _) in sessions(&text) {
            let Some(words) = words(&line) else { continue };
            if words.first().is_some_and(|w| w == "kiln") {
                let parsed = kiln::cli::command().try_get_matches_from(&words);
                let fine = parsed.as_ref().map_or_else(|e| !e.use_stderr(), |_| true);
                assert!(fine, "{}: `{line}`:\n{}", page.display(), parsed.unwrap_err());
            }
        }
    }
}

/// A command line's words up to the first operator or comment, quotes taken off; `None` when a quote is not closed.
fn words(line: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '|' | '>' | '&' | ';' | '#') => break,
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// A page that nothing leads to is read by nobody.
#[test]
fn the_index_names_every_page() {
    let index = fs::read_to_string(root().join("docs/README.md")).unwrap();
    let docs = root().join("docs");
    let missing: Vec<_> = pages()
        .into_iter()
        .filter_map(|(path, _)| path.strip_prefix(&docs).ok().map(|p| p.display().to_string()))
        .filter(|page| page != "README.md" && !index.contains(&format!("({page})")))
        .collect();
    assert!(missing.is_empty(), "docs/README.md doesn't name {missing:?}");
}

/// The language of every shown block is named, so that the tests above can see which are commands.
#[test]
fn blocks_name_their_language() {
    let mut nameless = Vec::new();
    for (page, text) in pages() {
        let fences = text.lines().enumerate().filter(|(_, line)| line.starts_with("```"));
        for (number, _) in fences.step_by(2).filter(|(_, line)| *line == "```") {
            nameless.push(format!("{}:{}", page.display(), number + 1));
        }
    }
    assert!(nameless.is_empty(), "{nameless:#?}");
}

/// Every event that `kiln publish --json` prints is explained.
#[test]
fn events_are_documented() {
    let page = fs::read_to_string(root().join("docs/reference/publication.md")).unwrap();
    let mut events = std::collections::BTreeSet::new();
    for file in ["src/cli/aws.rs", "src/cli/publish.rs"] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let names = text.split("\"event\": \"").skip(1).filter_map(|rest| rest.split('"').next());
        events.extend(names.map(str::to_owned));
    }
    assert!(events.len() > 8, "only {events:?} were found");
    let missing: Vec<_> = events.iter().filter(|event| !page.contains(&format!("| `{event}` |"))).collect();
    assert!(missing.is_empty(), "docs/reference/publication.md doesn't explain {missing:?}");
}
