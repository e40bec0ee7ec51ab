//! What programs of librdmacm ask beyond connecting, both ends in one process: case by case (tests/c/by_address.c), and
//! the commands that librdmacm is made of in any order (tests/c/cm_model.c).

use pvrdma_tests::{Chance, Provider, Stand, User, amount, c_program, machine};

#[test]
fn every_case_with_both_providers() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/by_address.c", &["-lrdmacm"]));
    let cases = stand.job(&program).ok();
    assert!(cases.lines().count() >= 22, "the program lists its cases: {cases}");
    let mut failed = Vec::new();
    for provider in Provider::BOTH {
        for case in cases.lines() {
            let output = stand.job(&program).provider(&provider).args([case]).output();
            if !output.status.success() || output.stdout != format!("ok {case}\n") {
                failed.push(format!("{case} with {provider:?}: {output}"));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert_eq!(stand.leftovers(), Vec::<std::path::PathBuf>::new());
}

/// Each command meets each state; the table says how often it was carried out there, and how often refused.
#[test]
fn a_model_knows_every_answer_and_every_event() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/cm_model.c", &[]));
    let (steps, seed) = (amount("200000", "10000000"), Chance::from_environment().below(1 << 32).to_string());
    let table = stand.job(&program).args([steps, &seed]).ok();
    println!("cm_model {steps} {seed}\n{table}");
    assert!(table.ends_with("\n270 of 270 pairs of a command and a state\n"), "{table}");
}
