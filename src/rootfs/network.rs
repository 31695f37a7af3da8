//! Who configures the network, and how.

use std::net::IpAddr;

use crate::rootfs::editor::Editor;
use crate::rootfs::error::RootfsError;
use crate::rootfs::units::{self, Requests, with_line_end};
use crate::system::{Manager, System, UnitState};

/// Matches every wired interface that no other file matches: systemd-networkd takes the first in the order of names.
const DHCP: &str = "[Match]\nType=ether\nKind=!*\n\n[Network]\nDHCP=yes\n";
/// One interface that is up is enough: a second one without cable must not hold up the boot for two minutes.
const WAIT_FOR_ANY: &str =
    "[Service]\nExecStart=\nExecStart=/usr/lib/systemd/systemd-networkd-wait-online --any\n";

/// Files for the network's manager, and the units that it needs.
pub(super) fn apply(
    editor: &mut Editor,
    system: &System,
    requests: &mut Requests,
) -> Result<(), RootfsError> {
    let network = &system.network;
    for address in &network.nameservers {
        let parsed: Result<IpAddr, _> = address.parse();
        let why = "an IPv4 or IPv6 address is expected";
        parsed.map_err(|_| RootfsError::value("network.nameservers", address, why))?;
    }
    if network.manager != Manager::Networkd
        && let Some(name) = network.networks.keys().next()
    {
        return Err(RootfsError::Contradiction {
            first: format!("network.networks.{name}"),
            second: "network.manager".to_owned(),
            why: ".network files are for systemd-networkd; set network.manager = 'networkd".to_owned(),
        });
    }
    match network.manager {
        Manager::Networkd => networkd(editor, system, requests)?,
        // cloud-init prefers netplan and ifupdown; without them it writes files for systemd-networkd. Outside of any
        // cloud it does nothing at all, and the interfaces are nobody's unless they are matched here.
        Manager::CloudInit
            if !editor.has("/usr/sbin/ifup") && units::exists(editor, "systemd-networkd.service") =>
        {
            dhcp(editor, system)?;
            requests.insert("systemd-networkd.service".to_owned(), UnitState::Enabled);
        }
        Manager::CloudInit | Manager::None => {}
    }
    resolver(editor, system, requests)
}

fn networkd(editor: &mut Editor, system: &System, requests: &mut Requests) -> Result<(), RootfsError> {
    let unit = "systemd-networkd.service";
    if !units::exists(editor, unit) {
        let (field, what) = ("network.manager = 'networkd".to_owned(), unit.to_owned());
        return Err(RootfsError::NeedsPackage { field, what, package: "systemd" });
    }
    let network = &system.network;
    for (name, text) in &network.networks {
        let field = format!("network.networks.{name}");
        if name.is_empty() || name.contains('/') {
            return Err(RootfsError::value(field, name, "a file's name, without slash, is expected"));
        }
        let known = [".network", ".netdev", ".link"].iter().any(|end| name.ends_with(end));
        let file = if known { name.clone() } else { format!("{name}.network") };
        editor.write(&field, &format!("/etc/systemd/network/{file}"), with_line_end(text))?;
    }
    dhcp(editor, system)?;
    requests.insert(unit.to_owned(), UnitState::Enabled);
    Ok(())
}

/// DHCP for what no other file matches; cloud-init's own files (`10-cloud-init-…`) come before it.
fn dhcp(editor: &mut Editor, system: &System) -> Result<(), RootfsError> {
    if system.network.dhcp {
        editor.write("network.dhcp", "/etc/systemd/network/zz-kiln-dhcp.network", DHCP)?;
        let path = "/etc/systemd/system/systemd-networkd-wait-online.service.d/kiln.conf";
        editor.write("network.dhcp", path, WAIT_FOR_ANY)?;
    }
    Ok(())
}

/// resolv.conf(5): systemd-resolved's when it is installed, else the name servers given. What the machine that ran the
/// build had there never stays.
fn resolver(editor: &mut Editor, system: &System, requests: &mut Requests) -> Result<(), RootfsError> {
    let servers = &system.network.nameservers;
    let unit = "systemd-resolved.service";
    if units::exists(editor, unit) {
        editor.link("network", "/etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")?;
        if !servers.is_empty() {
            let text = format!("[Resolve]\nDNS={}\n", servers.join(" "));
            editor.write("network.nameservers", "/etc/systemd/resolved.conf.d/60-kiln.conf", text)?;
        }
        requests.insert(unit.to_owned(), UnitState::Enabled);
        return Ok(());
    }
    if !servers.is_empty() {
        let text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        return editor.write("network.nameservers", "/etc/resolv.conf", text);
    }
    editor.remove("/etc/resolv.conf");
    if system.network.manager == Manager::Networkd {
        editor.warnings.push(
            "systemd-networkd learns name servers by DHCP, but nothing writes them to /etc/resolv.conf: \
             add packages.systemd-resolved = {}, or set network.nameservers"
                .to_owned(),
        );
    }
    Ok(())
}
