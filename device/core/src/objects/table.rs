//! Handle tables. A handle from outside is looked up, never indexed with; a freed one rests before it is given out
//! again, so that a stale handle meets nothing rather than a stranger.
//!
//! What an object costs is claimed before it is made (`budget.rs`) and given back here, when it leaves its table.

use crate::budget::{Budget, Claim};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A freed handle rests until about so many others were given out. Longer would cost: a program that makes and frees
/// for ever would fill the whole table with empty slots, and what fronts keep by handle with it.
const REST: u32 = 1024;

/// Objects by handle. Handles are `first..limit`.
#[derive(Debug)]
pub struct Table<T> {
    inner: RwLock<Inner<T>>,
}

/// Handles of a leaf.
const LEAF: usize = 256;

#[derive(Debug)]
struct Inner<T> {
    /// Leaves without an object are not there: since handles are reused late, a guest that makes and destroys one
    /// object again and again comes past all of them.
    leaves: Vec<Option<Box<Leaf<T>>>>,
    budget: Arc<Budget>,
    first: u32,
    limit: u32,
    /// Where the search for a free handle goes on.
    next: u32,
    used: u32,
}

#[derive(Debug)]
struct Leaf<T> {
    slots: [Option<Slot<T>>; LEAF],
    used: usize,
}

#[derive(Debug)]
struct Slot<T> {
    object: Arc<T>,
    /// Bytes to give back with it.
    cost: u64,
}

impl<T> Table<T> {
    /// An empty table for handles `first..limit`, whose objects are paid for from `budget`.
    pub fn new(first: u32, limit: u32, budget: &Arc<Budget>) -> Table<T> {
        let budget = budget.clone();
        Table { inner: RwLock::new(Inner { leaves: Vec::new(), budget, first, limit, next: first, used: 0 }) }
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner<T>> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner<T>> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an object under a free handle; `None` when the table is full. `make` may refuse.
    pub fn insert<E>(&self, claim: Claim, make: impl FnOnce(u32) -> Result<T, E>) -> Option<Result<Arc<T>, E>> {
        let mut inner = self.write();
        let free = inner.free()?;
        Some(make(free).map(|object| inner.put(free, object, claim)))
    }

    /// Makes an object under a given handle; `None` if it is taken.
    pub fn insert_at<E>(
        &self,
        handle: u32,
        claim: Claim,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Option<Result<Arc<T>, E>> {
        let mut inner = self.write();
        if inner.get(handle).is_some() {
            return None;
        }
        Some(make().map(|object| inner.put(handle, object, claim)))
    }

    /// The object of `handle`.
    pub fn get(&self, handle: u32) -> Option<Arc<T>> {
        self.read().get(handle).cloned()
    }

    /// Takes the object of `handle` out.
    pub fn remove(&self, handle: u32) -> Option<Arc<T>> {
        self.write().take(handle)
    }

    /// Puts `object` in the place of the one of `handle`, for the same cost; `false` if there is none any more.
    pub fn replace(&self, handle: u32, object: T) -> bool {
        let mut inner = self.write();
        let (leaf, slot) = place(handle);
        let slot = inner.leaves.get_mut(leaf).and_then(Option::as_mut).and_then(|leaf| leaf.slots[slot].as_mut());
        slot.map(|slot| slot.object = Arc::new(object)).is_some()
    }

    /// All objects, as they are now.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.read().objects().map(|(_, object)| object.clone()).collect()
    }

    /// Whether one of the objects is what `test` looks for.
    pub fn any(&self, test: impl Fn(&T) -> bool) -> bool {
        self.read().objects().any(|(_, object)| test(object))
    }

    /// Keeps only the objects that `keep` wants.
    pub fn retain(&self, keep: impl Fn(&T) -> bool) {
        let mut inner = self.write();
        let gone: Vec<u32> = inner.objects().filter(|(_, object)| !keep(object)).map(|(handle, _)| handle).collect();
        for handle in gone {
            inner.take(handle);
        }
    }

    /// Number of objects.
    #[cfg(test)]
    fn len(&self) -> u32 {
        self.read().used
    }
}

fn place(handle: u32) -> (usize, usize) {
    (handle as usize / LEAF, handle as usize % LEAF)
}

impl<T> Inner<T> {
    fn get(&self, handle: u32) -> Option<&Arc<T>> {
        let (leaf, slot) = place(handle);
        let slot = self.leaves.get(leaf)?.as_ref()?.slots[slot].as_ref();
        slot.map(|slot| &slot.object)
    }

    /// With their handles, which are in order.
    fn objects(&self) -> impl Iterator<Item = (u32, &Arc<T>)> {
        let leaves = self.leaves.iter().enumerate().filter_map(|(n, leaf)| Some((n, leaf.as_ref()?)));
        leaves.flat_map(|(n, leaf)| {
            let slots = leaf.slots.iter().enumerate();
            slots.filter_map(move |(m, slot)| Some(((n * LEAF + m) as u32, &slot.as_ref()?.object)))
        })
    }

    /// The next handle that names nothing.
    fn free(&self) -> Option<u32> {
        // More handles than are used: one of them is free, unless the table is full.
        let end = self.limit.min(self.first.saturating_add(2 * self.used + REST));
        let next = if self.next < end { self.next } else { self.first };
        let around = (next..end).chain(self.first..next);
        let mut handles = around.peekable();
        while let Some(handle) = handles.next() {
            let (leaf, slot) = place(handle);
            match self.leaves.get(leaf).and_then(Option::as_ref) {
                // The rest of a full leaf need not be looked at one by one.
                Some(full) if full.used == LEAF => while handles.next_if(|next| place(*next).0 == leaf).is_some() {},
                Some(some) if some.slots[slot].is_some() => {}
                _ => return Some(handle),
            }
        }
        None
    }

    fn put(&mut self, handle: u32, object: T, claim: Claim) -> Arc<T> {
        let object = Arc::new(object);
        let (leaf, slot) = place(handle);
        if self.leaves.len() <= leaf {
            self.leaves.resize_with(leaf + 1, || None);
        }
        let leaf = self.leaves[leaf].get_or_insert_with(|| Box::new(Leaf { slots: [const { None }; LEAF], used: 0 }));
        leaf.slots[slot] = Some(Slot { object: object.clone(), cost: claim.keep() });
        leaf.used += 1;
        self.used += 1;
        if handle >= self.first {
            self.next = if handle + 1 < self.limit { handle + 1 } else { self.first };
        }
        object
    }

    fn take(&mut self, handle: u32) -> Option<Arc<T>> {
        let (at, slot) = place(handle);
        let place = self.leaves.get_mut(at)?;
        let leaf = place.as_mut()?;
        let slot = leaf.slots[slot].take()?;
        leaf.used -= 1;
        if leaf.used == 0 {
            *place = None;
        }
        self.used -= 1;
        self.budget.give_back(slot.cost);
        Some(slot.object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_reused_as_late_as_possible() {
        let budget = Budget::new(1000);
        let table = Table::new(2, 5, &budget);
        let handle = |_: ()| {
            let mut made = 0;
            table
                .insert(budget.claim::<u32>(0, 0).unwrap(), |h| {
                    made = h;
                    Ok::<_, ()>(h)
                })
                .map(|_| made)
        };
        assert_eq!(handle(()), Some(2));
        table.remove(2).unwrap();
        assert_eq!(handle(()), Some(3), "2 is free but was just used");
        assert_eq!(handle(()), Some(4));
        assert_eq!(handle(()), Some(2));
        assert_eq!(handle(()), None, "full");
        assert!(table.get(1).is_none() && table.get(5).is_none() && table.get(u32::MAX).is_none());
        assert!(table.remove(u32::MAX).is_none());
        assert_eq!(table.len(), 3);
    }

    #[test]
    fn a_table_does_not_grow_when_objects_come_and_go() {
        let budget = Budget::new(1 << 30);
        let table = Table::new(2, 1 << 20, &budget);
        let mut highest = 0;
        for round in 0..10_000 {
            let made = table.insert(budget.claim::<u32>(0, 0).unwrap(), Ok::<_, ()>).unwrap().unwrap();
            assert!(round >= REST || *made == 2 + round, "a handle that was just used");
            highest = highest.max(*made);
            table.remove(*made).unwrap();
        }
        assert_eq!(highest, 2 + REST - 1);
        // Many at once all the same.
        for _ in 0..10_000 {
            table.insert(budget.claim::<u32>(0, 0).unwrap(), Ok::<_, ()>).unwrap().unwrap();
        }
        assert_eq!(table.len(), 10_000);
    }

    #[test]
    fn an_object_is_paid_for_as_long_as_it_is_there() {
        let budget = Budget::new(1000);
        let table = Table::new(0, 3, &budget);
        let claim = || budget.claim::<()>(0, 0).unwrap();
        let make = || table.insert(claim(), |handle| if handle < 2 { Ok(handle) } else { Err(handle) });
        make().unwrap().unwrap();
        let one = 1000 - budget.left();
        make().unwrap().unwrap();
        assert_eq!(make().unwrap().unwrap_err(), 2);
        assert_eq!(budget.left(), 1000 - 2 * one, "what was refused costs nothing");
        assert!(table.insert_at(1, claim(), || Ok::<_, ()>(7)).is_none());
        assert_eq!(budget.left(), 1000 - 2 * one, "nor does what is taken");
        table.remove(0).unwrap();
        assert!(table.remove(0).is_none());
        assert_eq!(budget.left(), 1000 - one);
        table.retain(|_| false);
        assert_eq!((budget.left(), table.len()), (1000, 0));
    }

    #[test]
    fn every_handle_is_found_once_and_leaves_go_when_they_are_empty() {
        let budget = Budget::new(1 << 20);
        let table = Table::new(3, 1000, &budget);
        let insert = || {
            let claim = budget.claim::<u32>(0, 0).unwrap();
            table.insert(claim, Ok::<_, ()>).map(|made| *made.unwrap())
        };
        let all: Vec<_> = std::iter::from_fn(insert).collect();
        assert_eq!(all, (3..1000).collect::<Vec<_>>());
        for handle in [3, 255, 256, 999] {
            assert_eq!(table.remove(handle).as_deref(), Some(&handle));
            assert_eq!(insert(), Some(handle), "the only one that is free");
            assert_eq!(insert(), None);
        }
        assert!(table.any(|object| *object == 700) && !table.any(|object| *object == 2));
        table.retain(|object| *object == 700);
        assert_eq!(table.all().iter().map(|object| **object).collect::<Vec<_>>(), [700]);
        let leaves = table.read().leaves.iter().flatten().count();
        assert_eq!((table.len(), leaves), (1, 1));
        for _ in 0..3000 {
            table.remove(insert().unwrap()).unwrap();
        }
        assert_eq!(table.read().leaves.iter().flatten().count(), 1);
    }
}
