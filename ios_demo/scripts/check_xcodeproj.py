"""Checks the Xcode project where there is no Xcode: `python ios_demo/scripts/check_xcodeproj.py [FOLDER]`.

Every object of the project must be there, of the right kind, and used; folders, files, package products, property
lists, assets and the scheme must be what the project says. One line for each finding, and exit status 1 if there is
one.
"""

import json
import plistlib
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.parsers.expat import ExpatError

from openstep import Value, parse

Objects = dict[str, dict[str, Value]]

ID = re.compile(r"[0-9A-F]{24}")
# What each kind of object must have, and the kinds of object that it may name.
KINDS: dict[str, dict[str, str]] = {
    "PBXProject": {
        "buildConfigurationList": "XCConfigurationList",
        "mainGroup": "PBXGroup",
        "packageReferences": "XCLocalSwiftPackageReference",
        "productRefGroup": "PBXGroup",
        "targets": "PBXNativeTarget",
    },
    "PBXNativeTarget": {
        "buildConfigurationList": "XCConfigurationList",
        "buildPhases": "PBXSourcesBuildPhase PBXFrameworksBuildPhase PBXResourcesBuildPhase",
        "fileSystemSynchronizedGroups": "PBXFileSystemSynchronizedRootGroup",
        "packageProductDependencies": "XCSwiftPackageProductDependency",
        "productReference": "PBXFileReference",
    },
    "PBXGroup": {"children": "PBXGroup PBXFileReference PBXFileSystemSynchronizedRootGroup"},
    "PBXFileReference": {},
    "PBXFileSystemSynchronizedRootGroup": {},
    "PBXBuildFile": {"fileRef": "PBXFileReference", "productRef": "XCSwiftPackageProductDependency"},
    "PBXSourcesBuildPhase": {"files": "PBXBuildFile"},
    "PBXFrameworksBuildPhase": {"files": "PBXBuildFile"},
    "PBXResourcesBuildPhase": {"files": "PBXBuildFile"},
    "XCBuildConfiguration": {},
    "XCConfigurationList": {"buildConfigurations": "XCBuildConfiguration"},
    "XCLocalSwiftPackageReference": {},
    "XCSwiftPackageProductDependency": {"package": "XCLocalSwiftPackageReference"},
}
SETTINGS = {  # of the target, or else of the project
    "SWIFT_VERSION": "6.0",
    "IPHONEOS_DEPLOYMENT_TARGET": "18.0",
    "CODE_SIGN_STYLE": "Automatic",
    "COREML_CODEGEN_LANGUAGE": "None",
    "SUPPORTS_MAC_DESIGNED_FOR_IPHONE_IPAD": "YES",
    "GENERATE_INFOPLIST_FILE": "NO",
}
ASSETS = {
    "ASSETCATALOG_COMPILER_APPICON_NAME": "appiconset",
    "ASSETCATALOG_COMPILER_GLOBAL_ACCENT_COLOR_NAME": "colorset",
}
PRIVACY = {"NSPrivacyTracking": False, "NSPrivacyTrackingDomains": [], "NSPrivacyCollectedDataTypes": []}
PLACEHOLDERS = {  # of Info.plist, which Xcode fills
    "CFBundleExecutable": "$(EXECUTABLE_NAME)",
    "CFBundleIdentifier": "$(PRODUCT_BUNDLE_IDENTIFIER)",
    "CFBundlePackageType": "$(PRODUCT_BUNDLE_PACKAGE_TYPE)",
}


def listed(value: Value | None) -> list[str]:
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]


def table(value: Value | None) -> dict[str, Value]:
    return value if isinstance(value, dict) else {}


def item(objects: Objects, key: Value | None) -> dict[str, Value]:
    """An object, or an empty one if there is none."""
    return objects.get(key, {}) if isinstance(key, str) else {}


def ids(value: Value) -> Iterator[str]:
    if isinstance(value, str):
        yield from [value] if ID.fullmatch(value) else []
    else:
        for part in value.values() if isinstance(value, dict) else value:
            yield from ids(part)


def check_objects(root: str, objects: Objects) -> Iterator[str]:
    """Ids, kinds, references, and whether all are used."""
    for key, each in objects.items():
        kind = str(each.get("isa"))
        if not ID.fullmatch(key):
            yield f"{key}: an id must be 24 digits of base 16"
        if kind not in KINDS:
            yield f"{key}: isa must be one of {', '.join(KINDS)}, got {kind}"
            continue
        for field, wanted in KINDS[kind].items():
            if field not in each and not (kind == "PBXBuildFile" and len(each) > 1):  # of which it has one
                yield f"{key}: a {kind} must have {field}"
            for name in listed(each.get(field)):
                found = item(objects, name).get("isa", "nothing")
                if found not in wanted.split():
                    yield f"{key}: {field} must name a {wanted}, got {name}, which is {found}"
        for name in ids(each):
            if name not in objects:
                yield f"{key}: {name} is named there and defined nowhere"
    reached, waiting = set(), [root]
    while waiting:
        key = waiting.pop()
        if key in objects and key not in reached:
            reached.add(key)
            waiting += ids(objects[key])
    for key in objects.keys() - reached:
        yield f"{key}: this {objects[key].get('isa')} is used nowhere"
    if item(objects, root).get("isa") != "PBXProject":
        yield f"rootObject must be a PBXProject, got {root}"


def check_files(app: Path, group: str, folder: Path, objects: Objects, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Whether what the groups show is there."""
    for key in listed(item(objects, group).get("children")):
        if key in (*above, group):
            yield f"{group}: a group must not contain itself, and {key} does"
            continue
        each = item(objects, key)
        path, kind = each.get("path"), each.get("isa")
        place = folder / str(path) if path else folder
        if each.get("sourceTree") == "BUILT_PRODUCTS_DIR":
            continue
        whole = kind == "PBXFileSystemSynchronizedRootGroup" or each.get("lastKnownFileType") == "folder"
        if whole and not place.is_dir():
            yield f"{key}: {place.relative_to(app)} must be a folder"
        elif not place.exists():
            yield f"{key}: {place.relative_to(app)} is not there"
        if kind == "PBXGroup":
            yield from check_files(app, key, place, objects, (*above, group))


def settings_of(objects: Objects, owner: str) -> dict[str, dict[str, Value]]:
    """Build settings of a target or a project, by the configuration's name."""
    configurations = item(objects, objects[owner].get("buildConfigurationList")).get("buildConfigurations")
    found = [item(objects, key) for key in listed(configurations)]
    return {str(each.get("name")): table(each.get("buildSettings")) for each in found}


def check_settings(app: Path, target: str, project: str, folders: list[Path], objects: Objects) -> Iterator[str]:
    """Build settings, and the files that they name."""
    base, own = settings_of(objects, project), settings_of(objects, target)
    if set(own) != {"Debug", "Release"} or set(base) != set(own):
        yield f"{target}: target and project must have Debug and Release, got {sorted(own)} and {sorted(base)}"
        return
    for name in own:
        settings = {**base[name], **own[name]}
        for key, wanted in SETTINGS.items():
            if settings.get(key) != wanted:
                yield f"{target}: {key} of {name} must be {wanted}, got {settings.get(key)}"
        if "DEVELOPMENT_TEAM" in settings:
            yield f"{target}: DEVELOPMENT_TEAM of {name} must be left to whoever builds it"
        plist = app / str(settings.get("INFOPLIST_FILE"))
        if any(plist.is_relative_to(folder) for folder in folders):
            yield f"{target}: INFOPLIST_FILE must lie outside the synchronized folders, which would copy it too"
        yield from check_plist(plist, PLACEHOLDERS)
        for key, suffix in ASSETS.items():
            if not [1 for folder in folders for _ in folder.glob(f"*.xcassets/{settings.get(key)}.{suffix}")]:
                yield f"{target}: {key} of {name} must name a {suffix}, got {settings.get(key)}"


def check_target(app: Path, target: str, project: str, objects: Objects) -> Iterator[str]:
    """Settings, privacy, assets, and that what the code imports is linked."""
    groups = listed(objects[target].get("fileSystemSynchronizedGroups"))
    folders = [app / str(item(objects, key).get("path")) for key in groups]
    yield from check_settings(app, target, project, folders, objects)
    products = listed(objects[target].get("packageProductDependencies"))
    linked = {str(item(objects, key).get("productName")) for key in products}
    files = [
        item(objects, key)
        for phase in listed(objects[target].get("buildPhases"))
        for key in listed(item(objects, phase).get("files"))
    ]
    built = {str(item(objects, file.get("productRef")).get("productName")) for file in files}
    for name in sorted(linked - built):
        yield f"{target}: {name} must be in the frameworks phase too"
    for folder in folders:
        for file in sorted(folder.rglob("*.swift")):
            for name in re.findall(r"^import (TRM\w+)", file.read_text(encoding="utf-8"), re.MULTILINE):
                if name not in linked:
                    yield f"{file.relative_to(app)}: it imports {name}, which the target does not link"
        yield from check_plist(folder / "PrivacyInfo.xcprivacy", PRIVACY)
        for catalog in folder.glob("*.xcassets"):
            yield from check_assets(app, catalog)


def check_assets(app: Path, catalog: Path) -> Iterator[str]:
    for folder in [catalog, *(path for path in catalog.rglob("*") if path.is_dir())]:
        file = folder / "Contents.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["info"]["version"] != 1:
                yield f"{file.relative_to(app)}: info.version must be 1"
            for name in [each["filename"] for each in content.get("images", []) if "filename" in each]:
                if not (folder / name).exists():
                    yield f"{file.relative_to(app)}: {name} is not there"
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield f"{file.relative_to(app)}: must be the JSON of an asset catalog: {error!r}"


def check_plist(file: Path, wanted: Mapping[str, object]) -> Iterator[str]:
    try:
        content = plistlib.loads(file.read_bytes())
    except (OSError, ValueError, ExpatError, plistlib.InvalidFileException) as error:
        yield f"{file.name}: must be a property list: {error}"
        return
    for key, value in wanted.items():
        if content.get(key) != value:
            yield f"{file.name}: {key} must be {value}, got {content.get(key)}"


def check_packages(app: Path, objects: Objects) -> Iterator[str]:
    """Whether the local package is there and has the products."""
    products: set[str] = set()
    for key, each in objects.items():
        if each.get("isa") == "XCLocalSwiftPackageReference":
            manifest = app / str(each.get("relativePath")) / "Package.swift"
            if manifest.is_file():
                products |= set(re.findall(r'\.library\(\s*name: "(\w+)"', manifest.read_text(encoding="utf-8")))
            else:
                yield f"{key}: there is no Package.swift in {each.get('relativePath')}"
    for key, each in objects.items():
        if each.get("isa") == "XCSwiftPackageProductDependency" and each.get("productName") not in products:
            known = ", ".join(sorted(products))
            yield f"{key}: {each.get('productName')} is no product of the package; it has {known}"


def check_scheme(project: Path, objects: Objects) -> Iterator[str]:
    schemes = sorted(project.glob("xcshareddata/xcschemes/*.xcscheme"))
    if not schemes:
        yield "there must be a shared scheme"
    for file in schemes:
        try:
            tree = ElementTree.fromstring(file.read_text(encoding="utf-8"))
        except ElementTree.ParseError as error:
            yield f"{file.name}: must be XML: {error}"
            continue
        references = list(tree.iter("BuildableReference"))
        if not references:
            yield f"{file.name}: it builds nothing"
        for reference in references:
            target = item(objects, reference.get("BlueprintIdentifier"))
            product = item(objects, target.get("productReference"))
            for key, wanted in {
                "BlueprintName": target.get("name"),
                "BuildableName": product.get("path"),
                "ReferencedContainer": f"container:{project.name}",
            }.items():
                if wanted is None or reference.get(key) != wanted:
                    yield f"{file.name}: {key} must be {wanted}, got {reference.get(key)}"


def findings(app: Path) -> Iterator[str]:
    """What is wrong with the project in a folder."""
    projects = sorted(app.glob("*.xcodeproj"))
    if len(projects) != 1:
        yield f"{app}: there must be one .xcodeproj, got {len(projects)}"
        return
    try:
        content = parse((projects[0] / "project.pbxproj").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield f"project.pbxproj: {error}"
        return
    if not isinstance(content, dict) or not isinstance(objects := content.get("objects"), dict):
        yield "project.pbxproj: it must have objects"
        return
    if content.get("objectVersion") != "77":
        yield f"objectVersion must be 77, got {content.get('objectVersion')}"
    objects = {key: each for key, each in objects.items() if isinstance(each, dict)}
    root = str(content.get("rootObject"))
    yield from check_objects(root, objects)
    yield from check_files(app, str(item(objects, root).get("mainGroup")), app, objects)
    yield from check_packages(app, objects)
    for target in listed(item(objects, root).get("targets")):
        if target in objects:
            yield from check_target(app, target, root, objects)
    yield from check_scheme(projects[0], objects)


def main() -> None:
    app = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "App"
    found = list(findings(app))
    for line in found:
        print(line)
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
