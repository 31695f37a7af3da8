//! The two things that a new network namespace needs, said to the kernel in rtnetlink's own words (rtnetlink(7)): programs
//! that say them are not on every host, and the older calls have no safe wrapper.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;

use nix::libc::{
    IFA_ADDRESS, IFA_LOCAL, IFF_UP, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, RTM_NEWADDR,
    RTM_NEWLINK,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

/// The loopback interface is the first of every namespace.
const LOOPBACK: u32 = 1;
/// Length of a message's head: its length, kind, flags, number, sender.
const HEAD: usize = 16;
/// An answer that carries an error number, 0 for none.
const ERROR: u16 = 2;
/// `AF_INET`, as one byte.
const INET: u8 = 2;

/// Brings the loopback interface up and gives it one more address.
pub(super) fn loopback(address: Ipv4Addr) -> io::Result<()> {
    let kind = SockType::Raw;
    let socket = socket(AddressFamily::Netlink, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    let mut socket = File::from(socket);
    ask(&mut socket, &up())?;
    ask(&mut socket, &add(address))
}

/// `struct ifinfomsg`: family, padding, type, index, flags, which of them change.
fn up() -> Vec<u8> {
    let mut body = vec![0; 4];
    for word in [LOOPBACK, IFF_UP as u32, IFF_UP as u32] {
        body.extend(word.to_ne_bytes());
    }
    message(RTM_NEWLINK, 0, &body)
}

/// `struct ifaddrmsg`: family, prefix length, flags, scope, index; then attributes of length, kind and value.
fn add(address: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![INET, 32, 0, 0];
    body.extend(LOOPBACK.to_ne_bytes());
    for kind in [IFA_LOCAL, IFA_ADDRESS] {
        body.extend(8u16.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(address.octets());
    }
    message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &body)
}

fn message(kind: u16, flags: i32, body: &[u8]) -> Vec<u8> {
    let mut bytes = ((HEAD + body.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(((NLM_F_REQUEST | NLM_F_ACK | flags) as u16).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

fn ask(socket: &mut File, message: &[u8]) -> io::Result<()> {
    socket.write_all(message)?;
    let mut answer = [0; 512];
    let length = socket.read(&mut answer)?;
    error_of(&answer[..length])
}

fn error_of(answer: &[u8]) -> io::Result<()> {
    let (Some(kind), Some(number)) = (answer.get(4..6), answer.get(HEAD..HEAD + 4)) else {
        return Err(io::Error::other("the kernel's answer is too short"));
    };
    let number = i32::from_ne_bytes([number[0], number[1], number[2], number[3]]);
    match (u16::from_ne_bytes([kind[0], kind[1]]), number) {
        (ERROR, 0) => Ok(()),
        (ERROR, number) => Err(io::Error::from_raw_os_error(number.wrapping_neg())),
        _ => Err(io::Error::other("the kernel's answer is of another kind")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_carry_an_error_or_none() {
        let answer = |number: i32| {
            let mut bytes = message(ERROR, 0, &number.to_ne_bytes());
            bytes.extend([0; HEAD]);
            error_of(&bytes)
        };
        answer(0).unwrap();
        assert_eq!(answer(-1).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        for wrong in [&b""[..], &[0; 19], &[0; 40]] {
            assert!(error_of(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn messages_have_the_kernels_lengths() {
        assert_eq!((up().len(), add(Ipv4Addr::LOCALHOST).len()), (32, 40));
    }
}
