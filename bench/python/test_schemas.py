"""The committed code of the schemas is what flatc makes of them: nobody edits it, nobody forgets to make it again."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
# From requirements.txt, so of the version that belongs to the crate: another one's code does not compile with it.
FLATC = Path(sys.executable).parent / "flatc"


def generate(schema, folder):
    """Generates the Rust code of schema into folder and returns it as text."""
    subprocess.run([FLATC, "--rust", "-o", folder, schema], check=True, capture_output=True, text=True)
    return (Path(folder) / f"{schema.stem}_generated.rs").read_text()


class Generated(unittest.TestCase):
    def test_generated_code_is_that_of_the_schemas(self):
        schemas = sorted((SCHEMAS / "fbs").glob("*.fbs"))
        self.assertTrue(schemas, "there are schemas")
        committed = {path.stem for path in (SCHEMAS / "src/generated").glob("*.rs")}
        self.assertEqual(committed, {schema.stem for schema in schemas})
        for schema in schemas:
            with self.subTest(schema=schema.name), tempfile.TemporaryDirectory() as folder:
                code = (SCHEMAS / "src/generated" / f"{schema.stem}.rs").read_text()
                self.assertEqual(
                    generate(schema, folder), code, f"run: flatc --rust on {schema.name}, see schemas/README.md"
                )

    def test_a_change_of_a_schema_changes_its_code(self):
        schema = SCHEMAS / "fbs/relay.fbs"
        with tempfile.TemporaryDirectory() as folder:
            changed = Path(folder) / schema.name
            changed.write_text(schema.read_text().replace("generation:uint;", "generation:ulong;"))
            self.assertNotEqual(generate(changed, folder), (SCHEMAS / "src/generated/relay.rs").read_text())


if __name__ == "__main__":
    unittest.main()
