"""The checks of the Swift sources and of the Xcode project find what is planted, and nothing in what is there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parent.parent / "ios_demo"
SCRIPTS = DEMO / "scripts"
sys.path.insert(0, str(SCRIPTS))
import check_sources  # noqa: E402  # ty: ignore[unresolved-import]
import check_xcodeproj  # noqa: E402  # ty: ignore[unresolved-import]
import openstep  # noqa: E402  # ty: ignore[unresolved-import]

PROJECT = "App/TRMDemo.xcodeproj/project.pbxproj"
SCHEME = "App/TRMDemo.xcodeproj/xcshareddata/xcschemes/TRMDemo.xcscheme"


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A copy of the package that may be damaged."""
    place = tmp_path / "ios_demo"
    place.mkdir()
    shutil.copy(DEMO / "Package.swift", place)
    for name in ["Sources", "App", "Tests"]:
        ignored = shutil.ignore_patterns("export*", "tiny-stories*")  # what somebody put into App/Model
        shutil.copytree(DEMO / name, place / name, ignore=ignored)
    return place


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A package of one file."""
    place = tmp_path / "ios_demo"
    for name in ["TRMCore", "TRMCoreML", "TRMBenchKit", "TRMDemoModel", "trm-bench"]:
        (place / "Sources" / name).mkdir(parents=True)
    (place / "App/TRMDemo").mkdir(parents=True)
    shutil.copy(DEMO / "Sources/TRMCore/StepModel.swift", place / "Sources/TRMCore")
    return place


def run(script: str, folder: Path) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), str(folder)], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def plant(file: Path, old: str, new: str) -> None:
    before = file.read_text()
    after = re.sub(old, new, before, count=1, flags=re.DOTALL)
    assert after != before, f"{old} does not stand in {file.name}"
    file.write_text(after)


def test_what_is_there_passes(demo):
    assert run("check_sources.py", demo) == (0, [])
    assert run("check_xcodeproj.py", demo / "App") == (0, [])


def test_a_finding_is_one_line_and_status_one(small):
    (small / "Sources/TRMCore/Planted.swift").write_text("let a = 1\nlet b = try! read()\n")
    status, lines = run("check_sources.py", small)
    assert (status, lines) == (
        1,
        ["Sources/TRMCore/Planted.swift:2: let b = try! read(): use try, and let the error be told"],
    )


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("Sources/TRMCore", "let session = URLSession.shared"),
        ("App/TRMDemo", "AsyncImage(url: place)"),
        ("Sources/TRMCoreML", "import Network"),
        ("Sources/trm-bench", "let handle = socket(AF_INET, 1, 0)"),
        ("App/TRMDemo", 'let place = "https://example.org"'),
        ("Sources/TRMCore", "let a = b as! Int"),
        ("App/TRMDemo", 'fatalError("no")'),
        ("Sources/TRMBenchKit", "precondition(a > 0)"),
        ("Sources/TRMCore", "let a = table[0]!"),
        ("Sources/TRMCore", "let a = find()!.count"),
        ("Sources/TRMCore", "var late: Int!"),
        ("Sources/TRMCore", 'let text = "of \\(number!) tokens"'),
        ("Sources/TRMCore", "final class Box: @unchecked Sendable {}"),
        ("Sources/TRMDemoModel", "print(a)"),
        ("App/TRMDemo", "  debugPrint(a)"),
        ("Sources/TRMDemoModel", "import SwiftUI"),
        ("Sources/TRMBenchKit", "@preconcurrency import CoreML"),
        ("App/TRMDemo", "import CoreML"),
        ("Sources/TRMDemoModel", "UserDefaults.standard.set(1, forKey: key)"),
        ("App/TRMDemo", '@AppStorage("seed") var seed = 0'),
    ],
)
def test_a_planted_line_is_found(small, place, line):
    (small / place / "Planted.swift").write_text(f"{line}\n")
    found = list(check_sources.findings(small))
    assert found and all(each.startswith(f"{place}/Planted.swift:1: ") for each in found)


@pytest.mark.parametrize("line", ["var ids: [String: Int32] = [:]", "let seen = Set<String>()"])
def test_the_tokenizer_has_no_string_keys(small, line):
    (small / "Sources/TRMCore/TokenizerPlanted.swift").write_text(f"{line}\n")
    assert len(list(check_sources.findings(small))) == 1
    (small / "Sources/TRMCore/TokenizerPlanted.swift").rename(small / "Sources/TRMCore/Planted.swift")
    assert not list(check_sources.findings(small))


@pytest.mark.parametrize(
    "line",
    [
        "// try! is not used, nor https://example.org",
        "/* fatalError( /* nested print( */ as! */ let a = 1",
        'let a = "try! \\" as! \\(name) print("',
        'let a = #"a \\(b!) try!"#',
        'let a = """\n    fatalError( b! "quoted"\n    """',
        "if a != b { c = !d }",
        "let connected = a.connect(b)",
        "fingerprint(of: folder)",
    ],
)
def test_a_harmless_line_is_not_found(small, line):
    (small / "Sources/TRMCore/Planted.swift").write_text(f"{line}\n")
    assert not list(check_sources.findings(small))


def test_tests_may_unwrap_and_the_command_may_print(demo):
    (demo / "Tests/TRMCoreTests/Planted.swift").write_text("let a = try! read()!\n")
    (demo / "Sources/trm-bench/Planted.swift").write_text("print(1)\n")
    assert not list(check_sources.findings(demo))


def test_long_files_and_dependencies_and_network_keys_are_found(demo):
    (demo / "Tests/TRMCoreTests/Planted.swift").write_text("\n" * 351)
    plant(
        demo / "Package.swift",
        r"    products: \[",
        '    dependencies: [.package(url: "x", from: "1.0.0")], products: [',
    )
    plant(
        demo / "App/Config/Info.plist",
        "<key>CFBundleName",
        "<key>NSAppTransportSecurity</key><dict/><key>CFBundleName",
    )
    found = list(check_sources.findings(demo))
    assert [each.split(":")[0] for each in found] == [
        "Tests/TRMCoreTests/Planted.swift",
        "Package.swift",
        "App/Config/Info.plist",
    ]


def test_a_folder_without_sources_is_no_success(tmp_path):
    assert run("check_sources.py", tmp_path)[0] == 1
    assert run("check_xcodeproj.py", tmp_path)[0] == 1


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        (PROJECT, "objectVersion = 77", "objectVersion = 56", "objectVersion"),
        (
            PROJECT,
            "mainGroup = 7D0000000000000000000015;",
            "mainGroup = 7D0000000000000000000099;",
            "defined nowhere",
        ),
        (PROJECT, r"fileRef = 7D0000000000000000000013", "fileRef = 7D0000000000000000000014", "fileRef must name"),
        (PROJECT, r"7D0000000000000000000012 /\* Info.plist \*/,", "", "used nowhere"),
        (PROJECT, r"\t\t\tproductReference = [^;]*;\n", "", "must have productReference"),
        (PROJECT, r"7D0000000000000000000062", "7D00000000000000000000", "24 digits"),
        (PROJECT, "isa = PBXSourcesBuildPhase", "isa = PBXShellScriptBuildPhase", "isa must be one of"),
        (PROJECT, "relativePath = ..;", "relativePath = ../..;", "no Package.swift"),
        (PROJECT, "productName = TRMCoreML;", "productName = TRMNoSuch;", "no product of the package"),
        (PROJECT, r"7D0000000000000000000022 /\* TRMCoreML in Frameworks \*/,", "", "frameworks phase"),
        (PROJECT, "path = Config;", "path = Configuration;", "is not there"),
        (PROJECT, r"7D0000000000000000000012 /\* Info.plist \*/,", "7D0000000000000000000016,", "contain itself"),
        (PROJECT, r"7D0000000000000000000012 /\* Info.plist \*/,", "7D0000000000000000000015,", "contain itself"),
        (PROJECT, "SWIFT_VERSION = 6.0", "SWIFT_VERSION = 5.0", "SWIFT_VERSION"),
        (PROJECT, "CODE_SIGN_STYLE", "DEVELOPMENT_TEAM = ABCDE;\nCODE_SIGN_STYLE", "DEVELOPMENT_TEAM"),
        (PROJECT, "Config/Info.plist", "TRMDemo/Info.plist", "outside the synchronized folders"),
        (PROJECT, "APPICON_NAME = AppIcon", "APPICON_NAME = Icon", "appiconset"),
        (PROJECT, "buildSettings = {", "buildSettings = {\nA = 1;\nA = 2;", "must stand once"),
        (PROJECT, r"rootObject = [^;]*;", "rootObject", "must stand there"),
        (PROJECT, "archiveVersion = 1;", "archiveVersion = 1~;", "no token"),
        (SCHEME, "7D0000000000000000000001", "7D0000000000000000000002", "BlueprintName"),
        (SCHEME, "container:TRMDemo", "container:Other", "ReferencedContainer"),
        (SCHEME, "</Scheme>", "", "must be XML"),
        ("App/Config/Info.plist", "</plist>", "", "must be a property list"),
        ("App/Config/Info.plist", r"\$\(EXECUTABLE_NAME\)", "TRM", "CFBundleExecutable"),
        ("App/TRMDemo/PrivacyInfo.xcprivacy", "<false/>", "<true/>", "NSPrivacyTracking"),
        ("App/TRMDemo/Assets.xcassets/Contents.json", ":", "", "JSON of an asset catalog"),
        (
            "App/TRMDemo/Assets.xcassets/AppIcon.appiconset/Contents.json",
            '"idiom"',
            '"filename": "a.png", "idiom"',
            "a.png",
        ),
        ("App/TRMDemo/RootView.swift", "import SwiftUI", "import SwiftUI\nimport TRMBenchKit", "does not link"),
    ],
)
def test_a_damaged_project_is_found(demo, file, old, new, words):
    plant(demo / file, old, new)
    found = list(check_xcodeproj.findings(demo / "App"))
    assert found and any(words in each for each in found), found


def test_a_missing_folder_is_found(demo):
    shutil.rmtree(demo / "App/Model")
    assert any("Model must be a folder" in each for each in check_xcodeproj.findings(demo / "App"))


def test_property_lists_are_read_as_they_are_written():
    text = '// !$*UTF8*$!\n{ a = "b \\"c\\" ; }"; /* note */ d = (e, "f g", ); h = { "i-j" = ../k; }; }\n'
    assert openstep.parse(text) == {"a": 'b "c" ; }', "d": ["e", "f g"], "h": {"i-j": "../k"}}


@pytest.mark.parametrize("text", ["", "{ a = 1 }", "{ a = 1; } b", "( a b )", "{ a = ; }", "{ a", '"a'])
def test_what_is_no_property_list_is_refused(text):
    with pytest.raises(ValueError, match=r"line \d+: "):
        openstep.parse(text)
