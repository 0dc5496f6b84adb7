//! Teams.
use super::control::{Control, MAX_TEAMS, Waiter};
use super::world::{self, World};
use super::{give_up, not_simulated};
use crate::c;
use crate::table::lock;
use std::sync::atomic::Ordering;

/// Every `stride`-th rank of the world from `start` on.
#[derive(Clone, Copy)]
pub(super) struct Team {
    /// Its barriers in the control block; `None` for me alone.
    barrier: Option<usize>,
    start: usize,
    stride: usize,
    size: usize,
    /// My number in it.
    me: usize,
}

impl Team {
    /// Those that are there from the beginning: world, shared, node, ranks of my number on other nodes, ranks on my
    /// GPU, leaders of GPUs.
    pub(super) fn first(me: usize, count: u32) -> [Self; 6] {
        let all = |barrier| Self { barrier: Some(barrier), start: 0, stride: 1, size: count as usize, me };
        let alone = Self { barrier: None, start: me, stride: 1, size: 1, me: 0 };
        [all(0), all(1), all(2), alone, alone, all(5)]
    }

    /// Waits for all of it.
    pub(super) fn meet(&self, control: &Control, waiter: Waiter) {
        if let Some(barrier) = self.barrier {
            control.meet(barrier, waiter, u32::try_from(self.size).unwrap_or(u32::MAX));
        }
    }

    /// The rank of the world that is `pe` here.
    fn world_pe(&self, pe: usize) -> Option<usize> {
        (pe < self.size).then(|| self.start + pe * self.stride)
    }

    /// The number here of a rank of the world.
    fn number(&self, world_pe: usize) -> Option<usize> {
        let distance = world_pe.checked_sub(self.start)?;
        let number = distance / self.stride;
        (distance.is_multiple_of(self.stride) && number < self.size).then_some(number)
    }
}

/// A team that I am in.
pub(super) fn get(world: &World, team: i32) -> Option<Team> {
    *lock(&world.teams).get(usize::try_from(team).ok()?)?
}

#[unsafe(no_mangle)]
extern "C" fn nvshmem_team_my_pe(team: i32) -> i32 {
    number(world::get().and_then(|world| Some(get(&world, team)?.me)))
}

#[unsafe(no_mangle)]
extern "C" fn nvshmem_team_n_pes(team: i32) -> i32 {
    number(world::get().and_then(|world| Some(get(&world, team)?.size)))
}

#[unsafe(no_mangle)]
extern "C" fn nvshmem_team_get_config(_team: i32, _config: usize) {
    not_simulated("nvshmem_team_get_config")
}

#[unsafe(no_mangle)]
extern "C" fn nvshmem_team_translate_pe(from: i32, pe: i32, to: i32) -> i32 {
    let translate = || {
        let world = world::get()?;
        let (from, to) = (get(&world, from)?, get(&world, to)?);
        to.number(from.world_pe(usize::try_from(pe).ok()?)?)
    };
    number(translate())
}

/// Collective over the parent; those who are not in the new team get -1.
#[unsafe(no_mangle)]
extern "C" fn nvshmem_team_split_strided(
    parent: i32,
    start: i32,
    stride: i32,
    size: i32,
    _config: usize,
    _mask: i64,
    team: *mut i32,
) -> i32 {
    let world = world::needed("nvshmem_team_split_strided");
    let part = [start, stride, size].map(|number| usize::try_from(number).unwrap_or(0));
    let made = get(&world, parent).and_then(|parent| split(&world, &parent, part));
    match made {
        Some(made) if c::out(team, made).is_ok() => 0,
        _ => 1,
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvshmem_team_destroy(team: i32) {
    let world = world::needed("nvshmem_team_destroy");
    let mut teams = lock(&world.teams);
    // Those that were there from the beginning stay.
    if let Some(place) = usize::try_from(team).ok().filter(|at| *at >= 6).and_then(|at| teams.get_mut(at)) {
        *place = None;
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvshmem_barrier(team: i32) -> i32 {
    meet("nvshmem_barrier", team)
}

#[unsafe(no_mangle)]
extern "C" fn nvshmem_team_sync(team: i32) -> i32 {
    meet("nvshmem_team_sync", team)
}

fn meet(call: &str, team: i32) -> i32 {
    let world = world::needed(call);
    let Some(team) = get(&world, team) else { return 1 };
    team.meet(world.control, Waiter::Host);
    0
}

/// Number of the new team here, -1 if I am not in it; `None` if the parent does not have such ranks.
fn split(world: &World, parent: &Team, [start, stride, size]: [usize; 3]) -> Option<i32> {
    if size == 0 || stride == 0 {
        return None;
    }
    parent.world_pe(start + (size - 1) * stride)?;
    let first = parent.world_pe(start)?;
    let slot = parent.barrier?;
    if parent.me == 0 {
        let new = world.control.teams.fetch_add(1, Ordering::Relaxed) + 6;
        world.control.split[slot].store(new, Ordering::Relaxed);
    }
    parent.meet(world.control, Waiter::Host);
    let barrier = world.control.split[slot].load(Ordering::Relaxed) as usize;
    parent.meet(world.control, Waiter::Host);
    if barrier >= MAX_TEAMS {
        give_up("too many teams were split off");
    }
    let mut team = Team { barrier: Some(barrier), start: first, stride: stride * parent.stride, size, me: 0 };
    let Some(me) = team.number(world.me) else { return Some(-1) };
    team.me = me;
    let mut teams = lock(&world.teams);
    teams.push(Some(team));
    i32::try_from(teams.len() - 1).ok()
}

fn number(of: Option<usize>) -> i32 {
    of.and_then(|number| i32::try_from(number).ok()).unwrap_or(-1)
}
