//! Who is which rank, as launchers say it in variables. A pure function of them: whoever reads the environment passes
//! it in.
use std::net::Ipv4Addr;

use super::{Place, Seat, Token, nodelist};
use crate::{Error, Pe, World};

/// Who started the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Launcher {
    /// torchrun, or any that sets `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`.
    Torchrun,
    /// Open MPI's mpirun: `OMPI_COMM_WORLD_*`.
    OpenMpi,
    /// Slurm's srun: `SLURM_*`.
    Srun,
}

/// What a launcher says. Ranks that are started another way fill it in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// This rank and its world.
    pub seat: Seat,
    /// This rank among those of its machine: the GPU that it takes.
    pub local: u32,
    /// Where rank 0 listens. Beside a given `MASTER_PORT` it is the next one: the launcher's own store has that port.
    pub place: Place,
    /// Keeps this job apart from others: made of the launcher's name for it, which is no secret.
    pub token: Token,
    /// Who said so.
    pub by: Launcher,
}

/// Ports for jobs that name none: below those that systems give away by themselves.
const PORTS: std::ops::Range<u64> = 20_000..32_000;

/// A variable by its name.
type Lookup<'a> = &'a dyn Fn(&'static str) -> Option<String>;

impl Launch {
    /// From variables: torchrun's if `RANK` and `WORLD_SIZE` are there, else Open MPI's, else srun's. Nothing when there
    /// are none of them: one process that was started by hand.
    ///
    /// `MASTER_ADDR` and `MASTER_PORT` hold for all three. Without them Open MPI's ranks meet on their one machine and
    /// srun's on the first machine of the step, at a port made of the job's name.
    ///
    /// # Errors
    /// [`Error::Variable`] naming the variable and what it must be; [`Error::NoSuchPe`], [`Error::NoRanks`].
    pub fn from_variables(lookup: impl Fn(&'static str) -> Option<String>) -> Result<Option<Self>, Error> {
        let set = |name| lookup(name).filter(|value| !value.is_empty());
        let lookup: Lookup<'_> = &set;
        let has = |names: [&'static str; 2]| names.into_iter().all(|name| lookup(name).is_some());
        if has(["RANK", "WORLD_SIZE"]) {
            torchrun(lookup).map(Some)
        } else if has(["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"]) {
            open_mpi(lookup).map(Some)
        } else if has(["SLURM_PROCID", "SLURM_NTASKS"]) {
            srun(lookup).map(Some)
        } else {
            Ok(None)
        }
    }

    /// One group of the job's ranks as a world of its own, for jobs that are split further than into the ranks of one
    /// sequence (data, tensor or pipeline parallel as well). `ranks` are numbers in this launch, in the group's order: the
    /// first becomes rank 0. Every rank of the group calls this with the same list; groups that run at one time do not
    /// overlap. The group is on one machine, where it meets over the loopback interface.
    ///
    /// ```
    /// # use symm_buffer::{Pe, rendezvous::Launch};
    /// # let variables = [("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "5"), ("MASTER_ADDR", "node0"), ("MASTER_PORT", "29500")];
    /// # let launch = Launch::from_variables(|name| variables.iter().find(|it| it.0 == name).map(|it| it.1.to_owned()))?;
    /// # let launch = launch.ok_or(symm_buffer::Error::NoRanks { call: "example" })?;
    /// // Ranks 0 to 3 share one sequence, 4 to 7 the next: this is rank 5 of 8.
    /// let first = launch.seat.me().0 / 4 * 4;
    /// let group = launch.part(&[first, first + 1, first + 2, first + 3].map(Pe))?;
    /// assert_eq!((group.seat.me(), group.seat.world().size()), (Pe(1), 4));
    /// # Ok::<(), symm_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoPart`] when the list has no such rank as this, a rank twice or one that is not of the job, or there is
    /// no port for it; [`Error::TooLong`] when the job's token has no room for the group's.
    pub fn part(&self, ranks: &[Pe]) -> Result<Self, Error> {
        let (me, size) = (self.seat.me(), self.seat.world().size());
        let wrong = |pe: Pe, what: &'static str| Error::NoPart { me, pe, what };
        let place = ranks.iter().position(|pe| *pe == me).ok_or_else(|| wrong(me, "is not in the list"))?;
        for (at, pe) in ranks.iter().enumerate() {
            if pe.index() >= size {
                return Err(wrong(*pe, "is not of the job"));
            }
            if ranks[..at].contains(pe) {
                return Err(wrong(*pe, "is in the list twice"));
            }
        }
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let seat = Seat::new(Pe(number(place)), World::new(number(ranks.len()))?)?;
        // No other group of the machine begins with the same rank.
        let port = u16::try_from(ranks[0].0)
            .ok()
            .and_then(|first| self.place.port.checked_add(first)?.checked_add(1));
        let port = port
            .ok_or_else(|| wrong(ranks[0], "would meet at a port beyond 65535; the job's must be lower"))?;
        let host = Ipv4Addr::LOCALHOST.to_string();
        let token = self.token.with(&format!(" {:016x}", hash(&format!("{ranks:?}"))))?;
        Ok(Self { seat, place: Place { host, port, bind: None }, token, ..self.clone() })
    }
}

fn torchrun(lookup: Lookup<'_>) -> Result<Launch, Error> {
    let host = needed(lookup, "MASTER_ADDR", "rank 0's machine")?;
    let master = needed(lookup, "MASTER_PORT", "a port")?;
    let job = format!("torchrun {} {master}", lookup("TORCHELASTIC_RUN_ID").unwrap_or_default());
    launch(lookup, Launcher::Torchrun, ["RANK", "WORLD_SIZE", "LOCAL_RANK"], host, &job)
}

fn open_mpi(lookup: Lookup<'_>) -> Result<Launch, Error> {
    let here = lookup("OMPI_COMM_WORLD_LOCAL_SIZE") == lookup("OMPI_COMM_WORLD_SIZE");
    let host = match lookup("MASTER_ADDR") {
        None if here => "127.0.0.1".to_owned(),
        _ => needed(lookup, "MASTER_ADDR", "rank 0's machine, as ranks are on several")?,
    };
    let job = lookup("PMIX_NAMESPACE").or_else(|| lookup("OMPI_MCA_ess_base_jobid")).unwrap_or_default();
    let names = ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"];
    launch(lookup, Launcher::OpenMpi, names, host, &format!("open mpi {job}"))
}

fn srun(lookup: Lookup<'_>) -> Result<Launch, Error> {
    const LISTS: [&str; 3] = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"];
    let host = match lookup("MASTER_ADDR") {
        Some(host) => host,
        None => {
            let list = LISTS.into_iter().find_map(lookup).unwrap_or_default();
            let wrong =
                || Error::Variable { name: LISTS[0], value: list.clone(), wanted: "a list of machines" };
            nodelist::first_host(&list).ok_or_else(wrong)?
        }
    };
    let part = |name| lookup(name).unwrap_or_default();
    let job = format!("srun {}.{}", part("SLURM_JOB_ID"), part("SLURM_STEP_ID"));
    let names = ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"];
    launch(lookup, Launcher::Srun, names, host, &job)
}

/// `names` are those of the rank, of the world's size and of the rank on its machine.
fn launch(
    lookup: Lookup<'_>,
    by: Launcher,
    names: [&'static str; 3],
    host: String,
    job: &str,
) -> Result<Launch, Error> {
    let [rank, size, local] = names;
    let world = World::new(number(lookup, size, "a number of ranks")?)?;
    let seat = Seat::new(Pe(number(lookup, rank, "this rank's number")?), world)?;
    let local = number(lookup, local, "this rank's number on its machine")?;
    let port = match lookup("MASTER_PORT") {
        Some(_) => {
            let wanted = "a port, 1 to 65534: ranks meet at the next one";
            let master: u16 = number(lookup, "MASTER_PORT", wanted)?;
            let wrong = || Error::Variable { name: "MASTER_PORT", value: master.to_string(), wanted };
            master.checked_add(1).filter(|port| *port > 1).ok_or_else(wrong)?
        }
        None => port_of(job),
    };
    // Names of jobs are short; a longer one is as good by its start and its hash.
    let cut = &job[..job.floor_char_boundary(80)];
    let token = Token::new(&format!("{cut} {:016x}", hash(job)))?;
    Ok(Launch { seat, local, place: Place { host, port, bind: None }, token, by })
}

fn needed(lookup: Lookup<'_>, name: &'static str, wanted: &'static str) -> Result<String, Error> {
    lookup(name).ok_or(Error::Variable { name, value: String::new(), wanted })
}

fn number<T: std::str::FromStr>(
    lookup: Lookup<'_>,
    name: &'static str,
    wanted: &'static str,
) -> Result<T, Error> {
    let value = needed(lookup, name, wanted)?;
    value.parse().map_err(|_| Error::Variable { name, value, wanted })
}

fn port_of(job: &str) -> u16 {
    let port = PORTS.start + hash(job) % (PORTS.end - PORTS.start);
    u16::try_from(port).unwrap_or(u16::MAX)
}

/// FNV-1a, 64 bits: the same on all ranks.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Variables = &'static [(&'static str, &'static str)];
    const TORCHRUN: Variables = &[
        ("RANK", "5"),
        ("WORLD_SIZE", "8"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "node0"),
        ("MASTER_PORT", "29500"),
        ("TORCHELASTIC_RUN_ID", "none"),
    ];
    const OPEN_MPI: Variables = &[
        ("OMPI_COMM_WORLD_RANK", "1"),
        ("OMPI_COMM_WORLD_SIZE", "4"),
        ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
        ("PMIX_NAMESPACE", "prterun-7"),
    ];
    const SRUN: Variables = &[
        ("SLURM_PROCID", "3"),
        ("SLURM_NTASKS", "4"),
        ("SLURM_LOCALID", "1"),
        ("SLURM_STEP_NODELIST", "gpu[07-08]"),
        ("SLURM_JOB_ID", "4711"),
        ("SLURM_STEP_ID", "0"),
    ];

    /// With some variables changed; an empty value is none.
    fn from(variables: Variables, changes: &[(&str, &str)]) -> Result<Option<Launch>, Error> {
        Launch::from_variables(|name| {
            let mut all = changes.iter().chain(variables);
            all.find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn seat(me: u32, world: u32) -> Seat {
        Seat::new(Pe(me), World::new(world).unwrap()).unwrap()
    }

    #[test]
    fn each_launcher_is_understood() {
        let torchrun = from(TORCHRUN, &[]).unwrap().unwrap();
        assert_eq!((torchrun.seat, torchrun.local, torchrun.by), (seat(5, 8), 1, Launcher::Torchrun));
        assert_eq!(torchrun.place, Place { host: "node0".to_owned(), port: 29501, bind: None });
        let mpi = from(OPEN_MPI, &[]).unwrap().unwrap();
        assert_eq!((mpi.seat, mpi.local, mpi.by), (seat(1, 4), 1, Launcher::OpenMpi));
        assert_eq!(mpi.place.host, "127.0.0.1");
        let srun = from(SRUN, &[]).unwrap().unwrap();
        assert_eq!((srun.seat, srun.local, srun.by), (seat(3, 4), 1, Launcher::Srun));
        assert_eq!(srun.place.host, "gpu07");
        assert!(PORTS.contains(&u64::from(srun.place.port)) && PORTS.contains(&u64::from(mpi.place.port)));
        assert_eq!(Launch::from_variables(|_| None), Ok(None));
    }

    #[test]
    fn ranks_of_one_job_agree_and_jobs_differ() {
        let other = from(SRUN, &[("SLURM_PROCID", "0"), ("SLURM_LOCALID", "0")]).unwrap().unwrap();
        let (one, step) = (from(SRUN, &[]).unwrap().unwrap(), from(SRUN, &[("SLURM_STEP_ID", "1")]).unwrap());
        assert_eq!((&one.place, &one.token), (&other.place, &other.token));
        assert!(step.is_some_and(|step| step.token != one.token && step.place != one.place));
        let given = from(SRUN, &[("MASTER_ADDR", "x"), ("MASTER_PORT", "9")]).unwrap().unwrap();
        assert_eq!((given.place.host.as_str(), given.place.port), ("x", 10));
    }

    #[test]
    fn wrong_and_missing_values_are_named() {
        for (variables, name, value) in [
            (TORCHRUN, "RANK", "x"),
            (TORCHRUN, "WORLD_SIZE", "-1"),
            (TORCHRUN, "LOCAL_RANK", ""),
            (TORCHRUN, "MASTER_ADDR", ""),
            (TORCHRUN, "MASTER_PORT", "65535"),
            (TORCHRUN, "MASTER_PORT", "0"),
            (TORCHRUN, "MASTER_PORT", "70000"),
            (SRUN, "SLURM_STEP_NODELIST", "a["),
            (SRUN, "SLURM_LOCALID", "1.5"),
        ] {
            let error = from(variables, &[(name, value)]).unwrap_err();
            assert!(
                matches!(&error, Error::Variable { name: found, .. } if *found == name),
                "{name}: {error}"
            );
        }
        let error = from(OPEN_MPI, &[("OMPI_COMM_WORLD_LOCAL_SIZE", "2")]).unwrap_err();
        assert!(error.to_string().contains("MASTER_ADDR"), "{error}");
        assert!(matches!(from(TORCHRUN, &[("RANK", "8")]), Err(Error::NoSuchPe { .. })));
        assert!(matches!(from(TORCHRUN, &[("WORLD_SIZE", "0")]), Err(Error::NoRanks { .. })));
    }

    #[test]
    fn every_rank_of_a_split_job_has_a_seat_and_groups_meet_apart() {
        let job = |rank: u32| {
            let rank = rank.to_string();
            from(TORCHRUN, &[("RANK", &rank), ("LOCAL_RANK", &rank)]).unwrap().unwrap()
        };
        for groups in
            [vec![vec![0, 1, 2, 3], vec![4, 5, 6, 7]], vec![vec![6, 0, 2], vec![1, 3, 5, 7], vec![4]]]
        {
            let mut met = Vec::new();
            for group in &groups {
                let ranks: Vec<Pe> = group.iter().copied().map(Pe).collect();
                let parts: Vec<Launch> = group.iter().map(|rank| job(*rank).part(&ranks).unwrap()).collect();
                for (number, (part, rank)) in (0..).zip(parts.iter().zip(group)) {
                    assert_eq!(part.seat, seat(number, u32::try_from(group.len()).unwrap()));
                    assert_eq!(
                        (part.local, &part.place, &part.token),
                        (*rank, &parts[0].place, &parts[0].token)
                    );
                    assert_eq!(part.place.host, "127.0.0.1");
                }
                assert_ne!((&parts[0].place, &parts[0].token), (&job(0).place, &job(0).token));
                met.push((parts[0].place.port, parts[0].token.clone()));
            }
            for (at, one) in met.iter().enumerate() {
                assert!(met[..at].iter().all(|other| other.0 != one.0 && other.1 != one.1));
            }
        }
    }

    #[test]
    fn a_wrong_list_of_ranks_is_named() {
        let job = from(TORCHRUN, &[]).unwrap().unwrap();
        for (ranks, pe, part) in [
            (&[0, 1][..], 5, "not in the list"),
            (&[], 5, "not in the list"),
            (&[5, 8], 8, "not of the job"),
            (&[5, 1, 1], 1, "twice"),
        ] {
            let ranks: Vec<Pe> = ranks.iter().copied().map(Pe).collect();
            let error = job.part(&ranks).unwrap_err();
            assert!(
                matches!(error, Error::NoPart { me: Pe(5), pe: Pe(found), .. } if found == pe),
                "{error}"
            );
            assert!(error.to_string().contains(part), "{error}");
        }
        let high = from(TORCHRUN, &[("MASTER_PORT", "65530")]).unwrap().unwrap();
        assert!(high.part(&[Pe(5)]).unwrap_err().to_string().contains("65535"));
        let mut long = job;
        long.token = Token::new(&"x".repeat(super::super::MAX_TOKEN)).unwrap();
        assert!(matches!(long.part(&[Pe(5)]), Err(Error::TooLong { .. })));
    }
}
