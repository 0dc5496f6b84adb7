//! Programs that start themselves once per rank, and what they share.
mod device_side;

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::Context;

pub use device_side::{DeviceSide, Pull};

/// A port for rank 0 to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port(pub u16);

/// Starts this program as `ranks` ranks, each as `command` says, and waits for all of them. When one fails, the others are
/// ended and its status is returned.
///
/// # Errors
/// When one cannot be started.
pub fn start_ranks(
    ranks: u32,
    command: impl Fn(&mut Command, u32, Port),
) -> anyhow::Result<Option<ExitStatus>> {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    let port = Port(free.local_addr()?.port());
    drop(free);
    let program = std::env::current_exe()?;
    let mut started = Started(Vec::new());
    for rank in 0..ranks {
        let mut process = Command::new(&program);
        process.args(std::env::args_os().skip(1));
        command(&mut process, rank, port);
        started.0.push(process.spawn().context("cannot start a rank")?);
    }
    loop {
        let ended = started.0.iter_mut().map(Child::try_wait).collect::<Result<Vec<_>, _>>()?;
        if let Some(failed) = ended.iter().flatten().find(|status| !status.success()) {
            return Ok(Some(*failed));
        }
        if ended.iter().all(Option::is_some) {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Nobody is left behind.
struct Started(Vec<Child>);

impl Drop for Started {
    fn drop(&mut self) {
        for rank in &mut self.0 {
            // Its end may have come already.
            _ = rank.kill();
            _ = rank.wait();
        }
    }
}
