//! Handle tables. A handle from outside is looked up, never indexed with; a freed one is given out again as
//! late as possible, so that a stale handle meets nothing rather than a stranger.

use std::sync::{Arc, PoisonError, RwLock};

/// Objects by handle. Handles are `first..limit`.
#[derive(Debug)]
pub struct Table<T> {
    inner: RwLock<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    slots: Vec<Option<Arc<T>>>,
    first: u32,
    limit: u32,
    /// Where the search for a free handle goes on.
    next: u32,
    used: u32,
}

impl<T> Table<T> {
    /// An empty table for handles `first..limit`.
    pub fn new(first: u32, limit: u32) -> Table<T> {
        Table { inner: RwLock::new(Inner { slots: Vec::new(), first, limit, next: first, used: 0 }) }
    }

    /// Makes an object under a free handle; `None` when the table is full. `make` may refuse.
    pub fn insert<E>(&self, make: impl FnOnce(u32) -> Result<T, E>) -> Option<Result<Arc<T>, E>> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let count = inner.limit - inner.first;
        let free = (0..count)
            .map(|n| inner.first + (inner.next - inner.first + n) % count)
            .find(|&handle| inner.slots.get(handle as usize).is_none_or(Option::is_none))?;
        Some(make(free).map(|object| inner.put(free, object)))
    }

    /// Makes an object under a given handle; `None` if it is taken.
    pub fn insert_at<E>(&self, handle: u32, make: impl FnOnce() -> Result<T, E>) -> Option<Result<Arc<T>, E>> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        if inner.slots.get(handle as usize).is_some_and(Option::is_some) {
            return None;
        }
        Some(make().map(|object| inner.put(handle, object)))
    }

    /// The object of `handle`.
    pub fn get(&self, handle: u32) -> Option<Arc<T>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.slots.get(handle as usize)?.clone()
    }

    /// Takes the object of `handle` out.
    pub fn remove(&self, handle: u32) -> Option<Arc<T>> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let object = inner.slots.get_mut(handle as usize)?.take();
        inner.used -= u32::from(object.is_some());
        object
    }

    /// All objects, as they are now.
    pub fn all(&self) -> Vec<Arc<T>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.slots.iter().flatten().cloned().collect()
    }

    /// Keeps only the objects that `keep` wants.
    pub fn retain(&self, keep: impl Fn(&T) -> bool) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        for slot in &mut inner.slots {
            if slot.as_ref().is_some_and(|object| !keep(object)) {
                *slot = None;
            }
        }
        inner.used = inner.slots.iter().flatten().count() as u32;
    }

    /// Number of objects.
    pub fn len(&self) -> u32 {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).used
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Inner<T> {
    fn put(&mut self, handle: u32, object: T) -> Arc<T> {
        let object = Arc::new(object);
        let index = handle as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = Some(object.clone());
        self.used += 1;
        if handle >= self.first {
            self.next = if handle + 1 < self.limit { handle + 1 } else { self.first };
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_reused_as_late_as_possible() {
        let table = Table::new(2, 5);
        let handle = |_: ()| {
            let mut made = 0;
            table
                .insert(|h| {
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
}
