//! Texts that are made of a few dozen phrases, so that some are near each other and none are the same. It never depends on
//! chance.

const THINGS: &str = "running shoe,rain jacket,tent,espresso machine,desk lamp,office chair,bicycle helmet,backpack,guitar,\
piano stool,camera lens,tripod,novel,cookbook,garden hose,lawn mower,frying pan,chef's knife,winter coat,sleeping bag,\
headphones,keyboard,monitor,water bottle";
const KINDS: &str = "light,waterproof,quiet,second-hand,professional,foldable,wireless,handmade,insulated,cheap,elegant,\
sturdy,compact,vintage,recycled,ergonomic,bright red,dark blue,silent,award-winning";
const USES: &str = "long trips,small kitchens,beginners,cold mornings,children,a home office,mountain trails,city traffic,\
rainy days,musicians,photographers,a student's room,gardeners,night shifts,marathon training,camping with friends,\
people with back pain,a birthday present";
const TALES: &str = "It lasts for years,The handle stays cool,Assembled in an hour,Our customers' favourite this spring,\
Weighs less than you would think,Made in a workshop in Portugal,Comes with spare parts,Tested at twenty degrees below zero,\
Folds into its own pocket,Needs no maintenance,With a warranty of ten years,Dries overnight,Fits under every bed,\
Charged by USB,Designed with a physiotherapist,Sold out twice last year";

/// One of a list; which, the number says.
fn one(of: &str, number: usize) -> &str {
    let count = of.split(',').count();
    of.split(',').nth(number % count).unwrap_or_default()
}

/// A row's.
pub fn text(number: usize) -> String {
    let mixed = number.wrapping_mul(37_199);
    let (thing, kind) = (one(THINGS, mixed), one(KINDS, mixed / 24));
    let (purpose, tale) = (one(USES, mixed / 480), one(TALES, mixed / 8_640));
    format!("A {kind} {thing} for {purpose}. {tale}. No. {number}")
}

/// What somebody may look for.
pub fn query(number: usize) -> String {
    let (thing, kind) = (one(THINGS, number), one(KINDS, number * 7));
    let purpose = one(USES, number * 11);
    match number % 3 {
        0 => format!("{kind} {thing}, number {number}"),
        1 => format!("which {thing} is good for {purpose}? {number}"),
        _ => format!("something {kind} for {purpose}, number {number}"),
    }
}
