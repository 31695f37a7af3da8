//! GRUB's configuration, as far as it says what is booted: variables, `search`, entries with `linux` and `initrd`.
//!
//! This is no interpreter of GRUB's language. Commands within an `if` are taken as if it held, except that entries behind
//! a test for something else count only when there is no other.

use std::collections::BTreeMap;

/// An entry of the menu.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct MenuEntry {
    pub(super) title: String,
    /// What `search` named last before the kernel was loaded, as a reference (`UUID=…`).
    pub(super) device: Option<String>,
    pub(super) kernel: String,
    pub(super) arguments: Vec<String>,
    pub(super) initrds: Vec<String>,
    /// Whether it stands within an `if`.
    conditional: bool,
}

/// What a configuration says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) entries: Vec<MenuEntry>,
    /// File systems that it searches for, as references, in their order.
    pub(super) searches: Vec<String>,
    /// Whether it loads another configuration or the entries of `loader/entries`.
    pub(super) refers: bool,
    default: Option<String>,
}

impl Config {
    /// The entry that is booted when nobody chooses.
    pub(super) fn chosen(&self) -> Option<&MenuEntry> {
        let sure: Vec<&MenuEntry> = self.entries.iter().filter(|e| !e.conditional).collect();
        let list = if sure.is_empty() { self.entries.iter().collect() } else { sure };
        let wanted = self.default.as_deref().unwrap_or("0");
        let by_title = list.iter().find(|e| e.title == wanted);
        let by_number = wanted.parse::<usize>().ok().and_then(|n| list.get(n));
        by_title.or(by_number).or(list.first()).copied()
    }
}

/// Reads a configuration; `variables` are those known before, such as the environment block's.
pub(super) fn parse(text: &str, variables: &BTreeMap<String, String>) -> Config {
    let mut parser = Parser { variables: variables.clone(), ..Parser::default() };
    for command in commands(text) {
        parser.command(&command);
    }
    parser.config
}

/// The environment block's variables (`grubenv`).
pub(super) fn environment(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|l| l.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

#[derive(Default)]
struct Parser {
    config: Config,
    variables: BTreeMap<String, String>,
    device: Option<String>,
    /// What each open brace belongs to: whether it is an entry.
    open: Vec<bool>,
    entry: Option<MenuEntry>,
    ifs: u32,
}

/// A word: pieces, each with whether variables in it are replaced.
type Word = Vec<(String, bool)>;

impl Parser {
    fn command(&mut self, words: &[Word]) {
        let words: Vec<String> = words.iter().map(|word| self.expand(word)).collect();
        // Words such as `then` and `do` stand before a command.
        let first =
            words.iter().position(|w| !matches!(w.as_str(), "then" | "else" | "do" | "!")).unwrap_or(0);
        let Some((name, rest)) = words.get(first..).and_then(|w| w.split_first()) else { return };
        match name.as_str() {
            "if" | "while" | "until" | "for" => self.ifs += 1,
            "fi" | "done" => self.ifs = self.ifs.saturating_sub(1),
            "set" => {
                if let Some((key, value)) = rest.first().and_then(|w| w.split_once('=')) {
                    self.set(key, value);
                }
            }
            "menuentry" => {
                let title = rest.first().cloned().unwrap_or_default();
                self.entry = Some(MenuEntry { title, conditional: self.ifs > 0, ..MenuEntry::default() });
                self.open.push(true);
            }
            "submenu" | "function" | "{" => self.open.push(false),
            "}" => self.close(),
            "linux" | "linux16" | "linuxefi" => self.linux(rest),
            "initrd" | "initrd16" | "initrdefi" => {
                if let Some(entry) = &mut self.entry {
                    entry.initrds.extend(rest.iter().cloned());
                }
            }
            "configfile" | "blscfg" | "normal" | "chainloader" => self.config.refers = true,
            search if search == "search" || search.starts_with("search.") => self.search(search, rest),
            _ => {}
        }
    }

    fn close(&mut self) {
        if self.open.pop() == Some(true) {
            let entry = self.entry.take().filter(|e| !e.kernel.is_empty());
            self.config.entries.extend(entry);
        }
    }

    fn set(&mut self, key: &str, value: &str) {
        if key == "default" && !value.is_empty() {
            self.config.default = Some(value.to_owned());
        }
        self.variables.insert(key.to_owned(), value.to_owned());
    }

    fn linux(&mut self, words: &[String]) {
        let Some((kernel, arguments)) = words.split_first() else { return };
        // One without a menu is booted as it stands.
        let outside = self.entry.is_none();
        let conditional = self.ifs > 0;
        let entry = self.entry.get_or_insert_with(|| MenuEntry { conditional, ..MenuEntry::default() });
        entry.kernel.clone_from(kernel);
        entry.device.clone_from(&self.device);
        // A variable may hold several arguments.
        entry.arguments = arguments.iter().flat_map(|a| a.split_whitespace()).map(str::to_owned).collect();
        if outside {
            self.config.entries.extend(self.entry.take());
        }
    }

    fn search(&mut self, name: &str, words: &[String]) {
        let has = |long: &str, short: &str| words.iter().any(|w| w == long || w == short);
        let tag = match name {
            "search.fs_uuid" => "UUID",
            "search.fs_label" => "LABEL",
            _ if has("--fs-uuid", "-u") => "UUID",
            _ if has("--label", "-l") => "LABEL",
            _ => return,
        };
        // The command with a dot takes what is searched first, then the variable; the other takes it as the word that is
        // no option.
        let mut words = words.iter();
        let value = if name == "search" {
            let mut last = None;
            while let Some(word) = words.next() {
                match word.as_str() {
                    // The value of `--set VARIABLE` is none of ours, nor is a hint's.
                    "--set" | "-s" => drop(words.next()),
                    option if option.starts_with('-') => {}
                    value => last = Some(value.to_owned()),
                }
            }
            last
        } else {
            words.next().cloned()
        };
        let Some(value) = value.filter(|v| !v.is_empty()) else { return };
        let reference = format!("{tag}={value}");
        if !self.config.searches.contains(&reference) {
            self.config.searches.push(reference.clone());
        }
        self.device = Some(reference);
    }

    fn expand(&self, word: &Word) -> String {
        let mut out = String::new();
        for (piece, replace) in word {
            if !replace {
                out.push_str(piece);
                continue;
            }
            let mut rest = piece.as_str();
            while let Some((before, after)) = rest.split_once('$') {
                out.push_str(before);
                let braced = after.strip_prefix('{').and_then(|a| a.split_once('}'));
                let (name, behind) = braced.unwrap_or_else(|| {
                    let end =
                        after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
                    after.split_at(end)
                });
                out.push_str(self.variables.get(name).map_or("", String::as_str));
                rest = behind;
            }
            out.push_str(rest);
        }
        out
    }
}

/// The commands of a text: words up to a line's end, a semicolon or a brace that stands alone.
fn commands(text: &str) -> Vec<Vec<Word>> {
    let mut lexer = Lexer::default();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\'' => lexer.piece(chars.by_ref().take_while(|&c| c != '\'').collect(), false),
            '"' => {
                let mut piece = String::new();
                while let Some(c) = chars.next().filter(|&c| c != '"') {
                    piece.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
                }
                lexer.piece(piece, true);
            }
            '\\' => match chars.next() {
                Some('\n') | None => {}
                Some(c) => lexer.piece(c.to_string(), false),
            },
            '#' if lexer.word.is_none() => while chars.next_if(|&c| c != '\n').is_some() {},
            '\n' | ';' | '&' | '|' => lexer.end_command(),
            c if c.is_whitespace() => lexer.end_word(),
            c => lexer.letter(c),
        }
    }
    lexer.end_command();
    lexer.commands
}

#[derive(Default)]
struct Lexer {
    commands: Vec<Vec<Word>>,
    words: Vec<Word>,
    word: Option<Word>,
}

impl Lexer {
    fn piece(&mut self, text: String, replace: bool) {
        self.word.get_or_insert_default().push((text, replace));
    }

    fn letter(&mut self, c: char) {
        let word = self.word.get_or_insert_default();
        match word.last_mut() {
            Some((piece, true)) => piece.push(c),
            _ => word.push((c.to_string(), true)),
        }
    }

    fn end_word(&mut self) {
        let Some(word) = self.word.take() else { return };
        let brace = matches!(&word[..], [(piece, true)] if piece == "{" || piece == "}");
        if !brace {
            self.words.push(word);
            return;
        }
        // What a brace opens is told by the command before it.
        let opens = word[0].0 == "{";
        let titled = self.words.first().is_some_and(|first| {
            first.first().is_some_and(|(w, _)| matches!(w.as_str(), "menuentry" | "submenu" | "function"))
        });
        self.end_words();
        if !(opens && titled) {
            self.commands.push(vec![word]);
        }
    }

    fn end_words(&mut self) {
        if !self.words.is_empty() {
            self.commands.push(std::mem::take(&mut self.words));
        }
    }

    fn end_command(&mut self) {
        self.end_word();
        self.end_words();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As Debian's grub-mkconfig writes it, shortened.
    const DEBIAN: &str = r#"
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set boot_once=true
else
   set default="0"
fi
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  fi
}
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple-1' {
	load_video
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	insmod part_gpt
	search --no-floppy --fs-uuid --set=root 26ada0c0-1165-4098-884d-aafd2220c2c6
	echo	'Loading Linux 6.1 ...'
	linux	/boot/vmlinuz-6.1.0-1-amd64 root=PARTUUID=8e0a5fa5-f7ea-2f4e-b3d0-5a3b2c9c7f83 ro console=tty0 console=ttyS0,115200 ${extra}
	initrd	/boot/initrd.img-6.1.0-1-amd64
}
submenu 'Advanced options' {
	menuentry 'old' {
		linux /boot/old root=UUID=1
	}
}
"#;

    #[test]
    fn what_grub_mkconfig_writes_is_read() {
        let variables = environment("# GRUB Environment Block\nextra=quiet splash\n####");
        let config = parse(DEBIAN, &variables);
        assert_eq!(config.searches, ["UUID=26ada0c0-1165-4098-884d-aafd2220c2c6"]);
        assert_eq!(config.entries.len(), 2);
        let chosen = config.chosen().unwrap();
        assert_eq!(chosen.title, "Debian GNU/Linux");
        assert_eq!(chosen.kernel, "/boot/vmlinuz-6.1.0-1-amd64");
        assert_eq!(chosen.initrds, ["/boot/initrd.img-6.1.0-1-amd64"]);
        assert_eq!(chosen.device.as_deref(), Some("UUID=26ada0c0-1165-4098-884d-aafd2220c2c6"));
        assert_eq!(chosen.arguments[1..], ["ro", "console=tty0", "console=ttyS0,115200", "quiet", "splash"]);
    }

    #[test]
    fn the_default_is_found_by_number_and_by_title() {
        let two = "menuentry a {\n linux /a\n}\nmenuentry 'b c' {\n linux /b\n}\n";
        let kernel =
            |set: &str| parse(&format!("{set}\n{two}"), &BTreeMap::new()).chosen().unwrap().kernel.clone();
        assert_eq!(kernel(""), "/a");
        assert_eq!(kernel("set default=1"), "/b");
        assert_eq!(kernel("set default='b c'"), "/b");
        assert_eq!(kernel("set default=7"), "/a");
        let conditional = "if [ -f /x ]; then\nmenuentry x {\nlinux /x\n}\nfi\n";
        assert_eq!(parse(&format!("{conditional}{two}"), &BTreeMap::new()).chosen().unwrap().kernel, "/a");
        assert_eq!(parse(conditional, &BTreeMap::new()).chosen().unwrap().kernel, "/x");
    }

    #[test]
    fn stubs_are_read() {
        let stub = "search.fs_uuid 12-ab root hd0,gpt1\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n";
        let config = parse(stub, &BTreeMap::new());
        assert_eq!((config.searches, config.refers), (vec!["UUID=12-ab".to_owned()], true));
        let by_label = parse("search --label --set root ROOT -n", &BTreeMap::new());
        assert_eq!(by_label.searches, ["LABEL=ROOT"]);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(menuentry|linux|\\{|\\}|[a-z '\"$\\\\;#\n{}=])*") {
            let _ = parse(&text, &BTreeMap::new()).chosen();
        }
    }
}
