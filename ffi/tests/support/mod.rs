//! What the layout tests share: asking the Rust compiler for sizes and offsets.

/// One field of a struct, under its C name.
#[derive(Debug)]
pub struct Field {
    /// C spelling, e.g. `wr.rdma.rkey`.
    pub name: &'static str,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// Bytes of the field.
    pub size: usize,
}

/// One struct, under its C name.
#[derive(Debug)]
pub struct Layout {
    /// C spelling without `struct`.
    pub name: &'static str,
    /// Bytes of the struct.
    pub size: usize,
    /// Its fields.
    pub fields: Vec<Field>,
}

/// Size of the field that `_get` would borrow.
pub fn field_size<T, F>(_get: impl Fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// `layouts![Type as "c_name" { field, rust_field = "c.spelling", ... } ...]`; without `as`, the C
/// name is the Rust name.
#[macro_export]
macro_rules! layouts {
    (@c $name:ident) => { stringify!($name) };
    (@c $name:ident $c:literal) => { $c };
    ($($ty:ident $(as $c:literal)? { $($field:ident $(= $fc:literal)?),* $(,)? })*) => {
        vec![$($crate::support::Layout {
            name: $crate::layouts!(@c $ty $($c)?),
            size: size_of::<$ty>(),
            fields: vec![$($crate::support::Field {
                name: $crate::layouts!(@c $field $($fc)?),
                offset: core::mem::offset_of!($ty, $field),
                size: $crate::support::field_size(|s: &$ty| &s.$field),
            }),*],
        }),*]
    };
}
