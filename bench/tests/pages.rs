//! Pages, pictures and README's table, from fixed results: a change of them is seen in a diff.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn bench(arguments: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("bench lies in the workspace");
    Command::new(env!("CARGO_BIN_EXE_pop-bench")).args(arguments).current_dir(root).output().expect("pop-bench runs")
}

/// A folder of its own, gone with the value.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("pop-bench-pages-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("the temporary folder can be written");
        Folder(folder)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("it is named here")
    }

    /// Names and contents, by name.
    fn files(&self) -> Vec<(String, String)> {
        let names = fs::read_dir(&self.0).expect("it is there").flatten().map(|entry| entry.path());
        let mut files: Vec<_> = names
            .map(|path| (path.file_name().expect("a file").to_string_lossy().into_owned(), fs::read_to_string(&path).expect("text")))
            .collect();
        files.sort();
        files
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// After a wanted change: `pop-bench report bench/tests/golden/fanout.json bench/tests/golden/latency.json --out bench/tests/golden`.
#[test]
fn a_page_says_what_the_result_says() {
    let folder = Folder::new("golden");
    let output = bench(&["report", "bench/tests/golden/fanout.json", "bench/tests/golden/latency.json", "--out", folder.path()]);
    assert!(output.status.success(), "{output:?}");
    let files = folder.files();
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["fanout-cpu.svg", "fanout-latency.svg", "fanout.md", "latency-latency.svg", "latency-load.svg", "latency.md"]);
    for (name, text) in files {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(&name);
        assert_eq!(text, fs::read_to_string(&golden).unwrap_or_default(), "{name} changed");
    }
}

#[test]
fn nothing_in_a_result_becomes_markup() {
    let folder = Folder::new("hostile");
    let output = bench(&["report", "bench/tests/golden/hostile.json", "--out", folder.path()]);
    assert!(output.status.success(), "{output:?}");
    let files = folder.files();
    assert!(files.iter().any(|(name, _)| name.ends_with(".svg")) && files.iter().any(|(name, _)| name.ends_with(".md")));
    for (name, text) in files {
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{name} has control characters");
        // A line of code in Markdown shows what it holds.
        let text = text.lines().filter(|line| name.ends_with(".svg") || !line.starts_with("    ")).collect::<Vec<_>>().join("\n");
        for tag in ["<script", "<img", "<b>", "<svg onload", "</td", "NaN", "inf\""] {
            assert!(!text.contains(tag), "{name} has {tag}: {text}");
        }
        for line in text.lines().filter(|line| name.ends_with(".md") && !line.starts_with("    ")) {
            // The only links are those to the page's own pictures.
            assert!(line.starts_with("![") || !line.replace(r"\]", "").contains("](") && !line.contains("```"), "{name}: {line}");
            // A row of a table has as many cells as its head: three or six bars, escaped ones apart.
            let bars = line.replace(r"\|", "").matches('|').count();
            assert!([0, 3, 6].contains(&bars), "{name}: {bars} bars: {line}");
        }
    }
}

#[test]
fn what_is_no_result_is_told_with_a_sentence() {
    let folder = Folder::new("none");
    for (name, text) in [("a.json", "{}"), ("b.json", "no JSON"), ("c.json", "[1]")] {
        let file = folder.0.join(name);
        fs::write(&file, text).expect("it can be written");
        let output = bench(&["report", file.to_str().expect("named here"), "--out", folder.path()]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(name) && !said.contains("panicked"), "{said}");
    }
}

#[test]
fn the_table_of_the_readme_is_made_from_the_results() {
    let output = bench(&["table", "--check"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_page_that_says_something_else_than_the_results_is_found() {
    let folder = Folder::new("table");
    let (page, results) = (folder.0.join("page.md"), folder.0.join("results"));
    fs::create_dir_all(&results).expect("it can be made");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fanout.json");
    fs::copy(&golden, results.join("2026-11-26-fanout-1x200.json")).expect("it can be copied");
    let empty = "before\n<!-- made by pop-bench table: begin -->\n<!-- made by pop-bench table: end -->\nafter\n";
    fs::write(&page, empty).expect("it can be written");
    let table = |flags: &[&str]| {
        let page = page.to_str().expect("named here");
        let output = bench(&[&["table", results.to_str().expect("named here"), "--page", page], flags].concat());
        (output.status.code(), fs::read_to_string(page).expect("it is there"))
    };
    assert_eq!(table(&["--check"]), (Some(1), empty.to_owned()));
    let (code, made) = table(&[]);
    assert!(
        code == Some(0) && made.contains("| fanout-1x200 | 1 publisher, 200 subscribers, 1.5 Mb/s each") && made.ends_with("\nafter\n"),
        "{made}"
    );
    assert_eq!(table(&["--check"]), (Some(0), made.clone()));
    fs::write(&page, made.replace("34,100", "43,100")).expect("it can be written");
    assert_eq!(table(&["--check"]).0, Some(1));
}

#[test]
fn only_a_case_that_measures_takes_a_report() {
    let output = bench(&["table", "--check", "--report", "x"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}
