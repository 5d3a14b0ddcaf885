//! pgvector's `vector` values, built in place: a varlena of dimension count and 4-byte floats.
//!
//! It never goes through text: that would cost 130 µs a vector and lose digits.

use pgrx::datum::{DatumWithOid, FromDatum, IntoDatum};
use pgrx::pg_sys;

/// Bytes before the floats: the varlena header, the dimensions (u16) and a reserved u16.
const HEADER: usize = 8;

/// A `vector` datum in the current memory context.
pub fn datum(values: &[f32]) -> pg_sys::Datum {
    let size = HEADER + size_of_val(values);
    // SAFETY: `size` bytes are allocated and written in full: header, dimensions, floats.
    unsafe {
        let pointer = pg_sys::palloc0(size).cast::<u8>();
        pgrx::set_varsize_4b(pointer.cast(), size as i32);
        pointer.add(4).cast::<u16>().write(values.len() as u16);
        pointer
            .add(HEADER)
            .cast::<f32>()
            .copy_from_nonoverlapping(values.as_ptr(), values.len());
        pg_sys::Datum::from(pointer)
    }
}

/// A `vector[]` argument.
pub fn array(vectors: &[&[f32]], vector: pg_sys::Oid, array: pg_sys::Oid) -> DatumWithOid<'static> {
    let mut elements: Vec<pg_sys::Datum> = vectors.iter().map(|values| datum(values)).collect();
    // SAFETY: the elements are varlena datums of the type `vector` (int4-aligned), copied into the array.
    unsafe {
        let built = pg_sys::construct_array(
            elements.as_mut_ptr(),
            elements.len() as i32,
            vector,
            -1,
            false,
            pg_sys::TYPALIGN_INT as std::ffi::c_char,
        );
        argument(pg_sys::Datum::from(built), array)
    }
}

/// A `vector` argument.
pub fn single(values: &[f32], vector: pg_sys::Oid) -> DatumWithOid<'static> {
    // SAFETY: the datum is of the type `vector`.
    unsafe { argument(datum(values), vector) }
}

/// # Safety
/// `datum` is of type `oid`.
unsafe fn argument(datum: pg_sys::Datum, oid: pg_sys::Oid) -> DatumWithOid<'static> {
    struct Raw(pg_sys::Datum);
    impl pgrx::IntoDatum for Raw {
        fn into_datum(self) -> Option<pg_sys::Datum> {
            Some(self.0)
        }
        fn type_oid() -> pg_sys::Oid {
            pg_sys::InvalidOid
        }
    }
    // SAFETY: the caller's promise.
    unsafe { DatumWithOid::new(Raw(datum), oid) }
}

/// The numbers of a `vector` that a query gives.
#[derive(Clone)]
pub struct Numbers(pub Vec<f32>);

impl FromDatum for Numbers {
    unsafe fn from_polymorphic_datum(
        datum: pg_sys::Datum,
        is_null: bool,
        _: pg_sys::Oid,
    ) -> Option<Numbers> {
        if is_null {
            return None;
        }
        // SAFETY: a value of pgvector's: as many floats as it says stand behind its header, aligned by the server.
        unsafe {
            let packed = datum.cast_mut_ptr::<pg_sys::varlena>();
            let value = pg_sys::pg_detoast_datum(packed);
            let bytes = value.cast::<u8>();
            let count = usize::from(bytes.add(4).cast::<u16>().read());
            let numbers = std::slice::from_raw_parts(bytes.add(HEADER).cast::<f32>(), count);
            let numbers = Numbers(numbers.to_vec());
            if value != packed {
                pg_sys::pfree(value.cast());
            }
            Some(numbers)
        }
    }
}

impl IntoDatum for Numbers {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        Some(datum(&self.0))
    }

    fn type_oid() -> pg_sys::Oid {
        crate::catalog::names::vector_types().map_or(pg_sys::InvalidOid, |(vector, _)| vector)
    }
}
