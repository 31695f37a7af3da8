//! What happened when, read from the console.

use crate::check::report::Mark;
use crate::vm::console::Line;

/// The first line that holds one of these texts marks the stage.
const STAGES: [(&str, &[&str]); 7] = [
    ("firmware", &["SeaBIOS", "BdsDxe", "UEFI", "Booting from"]),
    ("boot loader", &["GRUB", "systemd-boot", "Booting `", "Loading Linux"]),
    ("kernel", &["Linux version"]),
    ("initrd", &["Run /init as init process", "Loading, please wait"]),
    ("systemd", &["Welcome to ", "systemd[1]: systemd "]),
    ("basic system", &["Reached target basic.target", "Reached target Basic System"]),
    ("login", &[" login:"]),
];

/// The stages of each boot in order; a second "Linux version" begins another boot.
pub(super) fn marks(lines: &[Line], settled: Option<f64>) -> Vec<Mark> {
    let mut marks: Vec<Mark> = Vec::new();
    let mut boot: Vec<&str> = Vec::new();
    for line in lines {
        let stage = STAGES.iter().find(|(_, signs)| signs.iter().any(|sign| line.text.contains(sign)));
        let Some((stage, _)) = stage else { continue };
        let earlier = matches!(*stage, "firmware" | "boot loader" | "kernel");
        if boot.contains(stage) {
            // The firmware of the next boot speaks only after a login, or the kernel does for a second time.
            if !(earlier && (boot.contains(&"systemd") || *stage == "kernel")) {
                continue;
            }
            boot.clear();
        }
        boot.push(stage);
        marks.push(Mark { at: line.at.as_secs_f64(), what: (*stage).to_owned() });
    }
    if let Some(at) = settled {
        let place = marks.iter().position(|m| m.at > at).unwrap_or(marks.len());
        marks.insert(place, Mark { at, what: "settled".to_owned() });
    }
    marks
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn stages_of_two_boots() {
        let texts = [
            "SeaBIOS (version 1)",
            "GRUB loading",
            "Booting `Debian'",
            "[0.0] Linux version 6",
            "Welcome to Debian",
            "x login:",
            "SeaBIOS (version 1)",
            "[0.0] Linux version 6",
        ];
        let lines: Vec<Line> = (1u64..)
            .zip(texts)
            .map(|(at, text)| Line { at: Duration::from_secs(at), text: text.to_owned() })
            .collect();
        let found: Vec<String> =
            marks(&lines, Some(6.5)).iter().map(|m| format!("{} {}", m.at, m.what)).collect();
        assert_eq!(
            found,
            [
                "1 firmware",
                "2 boot loader",
                "4 kernel",
                "5 systemd",
                "6 login",
                "6.5 settled",
                "7 firmware",
                "8 kernel"
            ]
        );
    }
}
