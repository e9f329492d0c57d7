import Foundation
import Synchronization
import Testing

@testable import TRMCore

/// An export folder of small files and a store, in a folder that goes with it.
final class ExportFixture {
    let root = FileManager.default.temporaryDirectory.appendingPathComponent("trm-\(UUID().uuidString)")
    var export: URL { root.appendingPathComponent("export") }
    var home: URL { root.appendingPathComponent("home") }
    var store: ModelStore { ModelStore(home: home) }
    static let weights = "Host4.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    var files: [String: [UInt8]] = [
        "Host4.mlpackage/Manifest.json": Array("{}".utf8),
        "Host4.mlpackage/Data/com.apple.CoreML/model.mlmodel": Array("program".utf8),
        weights: (0..<3000).map { UInt8(truncatingIfNeeded: $0) },
        "golden.json": Array("{}".utf8),
        "tokenizer.model": [7, 7, 7],
    ]

    init() throws { try write() }
    deinit { try? FileManager.default.removeItem(at: root) }

    func place(_ path: String) -> URL { export.appendingPathComponent(path) }

    func write(_ path: String, _ bytes: [UInt8]) throws {
        let folder = place(path).deletingLastPathComponent()
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try Data(bytes).write(to: place(path))
    }

    /// Writes all files, and a manifest that lists them.
    func write(claiming changed: [String: Int] = [:]) throws {
        for (path, bytes) in files { try write(path, bytes) }
        let records = files.keys.sorted().map { path in
            let bytes = files[path] ?? []
            let size = changed[path] ?? bytes.count
            return #"{"path": "\#(path)", "bytes": \#(size), "sha256": "\#(ImportSHA256.hexadecimal(of: bytes))"}"#
        }
        let text = try #require(GoldenManifests.shared?.valid.last).replacingOccurrences(
            of: #""files": []"#, with: #""files": [\#(records.joined(separator: ", "))]"#)
        try write(Manifest.fileName, Array(text.utf8))
    }

    /// What the store's folder holds; nil if there is none.
    var kept: [String]? { try? FileManager.default.contentsOfDirectory(atPath: home.path) }
}

@Suite struct ModelStoreTests {
    @Test func anExportIsCopiedWhole() throws {
        let made = try ExportFixture()
        var shares: [Double] = []
        let model = try made.store.add(made.export) { shares.append($0) }
        for (path, bytes) in made.files {
            #expect([UInt8](try Data(contentsOf: model.export.appendingPathComponent(path))) == bytes)
        }
        let manifest = [UInt8](try Data(contentsOf: made.place(Manifest.fileName)))
        #expect(model.id == ImportSHA256.hexadecimal(of: manifest))
        #expect(made.kept == [model.id] && made.store.models() == [model])
        #expect(shares.last == 1 && shares == shares.sorted())
    }

    @Test func theSameExportIsNotStoredTwice() throws {
        let made = try ExportFixture()
        let first = try made.store.add(made.export)
        #expect(try made.store.add(made.export) == first && made.kept?.count == 1)
    }

    @Test func aModelThatWasDamagedInTheStoreIsReplaced() throws {
        let made = try ExportFixture()
        let model = try made.store.add(made.export)
        let weights = model.export.appendingPathComponent(ExportFixture.weights)
        try Data([1]).write(to: weights)
        #expect(throws: ImportError.wrongSize(ExportFixture.weights, bytes: 1, wanted: 3000)) {
            try made.store.verify(model)
        }
        try made.store.verify(try made.store.add(made.export))
    }

    @Test func whatTheFinderLeavesIsNotCopied() throws {
        let made = try ExportFixture()
        try made.write("Host4.mlpackage/.DS_Store", [1])
        let model = try made.store.add(made.export)
        #expect(try FileTree(model.export, most: 100).files.count == made.files.count + 1)
        #expect(!FileManager.default.fileExists(atPath: model.package.appendingPathComponent(".DS_Store").path))
    }

    @Test func aRemovedModelIsGone() throws {
        let made = try ExportFixture()
        try made.store.remove(try made.store.add(made.export))
        #expect(made.store.models().isEmpty && made.kept == [])
    }

    @Test func whatACrashLeftIsRemoved() throws {
        let made = try ExportFixture()
        let model = try made.store.add(made.export)
        let left = made.home.appendingPathComponent(".importing-1")
        try FileManager.default.createDirectory(at: left, withIntermediateDirectories: true)
        #expect(made.store.models() == [model])
        made.store.removeUnfinished()
        #expect(made.kept == [model.id])
    }

    typealias Harm = @Sendable (ExportFixture) throws -> Void
    static let weights = ExportFixture.weights
    static let harms: [(String, ImportError, Harm)] = [
        ("no manifest", .noManifest, { try FileManager.default.removeItem(at: $0.place(Manifest.fileName)) }),
        ("a file more", .unlisted("more"), { try $0.write("more", [1]) }),
        (
            "a file more in the package", .unlisted("Host4.mlpackage/more/x"),
            { try $0.write("Host4.mlpackage/more/x", [1]) }
        ),
        (
            "a name that Swift takes for a listed one", .unlisted("\u{212a}"),
            { fixture in
                fixture.files["K"] = [1]
                try fixture.write()
                try fixture.write("\u{212a}", [1])
            }
        ),
        ("a file missing", .missing(weights), { try FileManager.default.removeItem(at: $0.place(weights)) }),
        (
            "a package cut short", .missing("Host4.mlpackage/Data/com.apple.CoreML/model.mlmodel"),
            { try FileManager.default.removeItem(at: $0.place("Host4.mlpackage/Data")) }
        ),
        ("a file cut short", .wrongSize("golden.json", bytes: 1, wanted: 2), { try $0.write("golden.json", [1]) }),
        (
            "another file of that size", .changed("tokenizer.model"),
            { try $0.write("tokenizer.model", [7, 7, 6]) }
        ),
        (
            "one bit", .changed(weights),
            { fixture in
                var bytes = fixture.files[weights] ?? []
                bytes[2999] ^= 1
                try fixture.write(weights, bytes)
            }
        ),
        (
            "a link to a file", .link("golden.json"),
            { try Self.replace("golden.json", in: $0, withLinkTo: $0.place("tokenizer.model")) }
        ),
        (
            "a link to a folder", .link("Host4.mlpackage/Data"),
            { try Self.replace("Host4.mlpackage/Data", in: $0, withLinkTo: $0.root) }
        ),
        (
            "a manifest that is a link", .link(Manifest.fileName),
            { fixture in
                let other = fixture.root.appendingPathComponent("other.json")
                try FileManager.default.copyItem(at: fixture.place(Manifest.fileName), to: other)
                try Self.replace(Manifest.fileName, in: fixture, withLinkTo: other)
            }
        ),
        (
            "a pipe", .special("golden.json"),
            { fixture in
                try FileManager.default.removeItem(at: fixture.place("golden.json"))
                #expect(mkfifo(fixture.place("golden.json").path, 0o600) == 0)
            }
        ),
        (
            "a folder in the place of a file", .missing("golden.json"),
            { fixture in
                let place = fixture.place("golden.json")
                try FileManager.default.removeItem(at: place)
                try FileManager.default.createDirectory(at: place, withIntermediateDirectories: true)
            }
        ),
        (
            "no tokenizer", .incomplete(needs: "tokenizer.model"),
            { fixture in
                fixture.files["tokenizer.model"] = nil
                try fixture.write()
            }
        ),
        (
            "no package", .incomplete(needs: "Host4.mlpackage/Manifest.json"),
            { fixture in
                fixture.files = fixture.files.filter { !$0.key.hasPrefix("Host4") }
                try fixture.write()
            }
        ),
        (
            "more bytes than an app takes", .tooLarge(bytes: 12 + (1 << 30), most: ModelStore.mostBytes),
            { try $0.write(claiming: [weights: 1 << 30, "golden.json": 0]) }
        ),
        (
            "more files than a model has", .tooManyFiles(most: ModelStore.mostFiles),
            { fixture in for number in 0..<1001 { try fixture.write("many/\(number)", []) } }
        ),
        (
            "a folder in a folder, and so on", .tooManyFiles(most: ModelStore.mostFiles),
            { try $0.write(String(repeating: "a/", count: 40) + "b", []) }
        ),
    ]

    @Test(arguments: harms.indices) func aHarmedFolderIsRefusedAndNothingIsLeft(index: Int) throws {
        let (name, error, harm) = Self.harms[index]
        let made = try ExportFixture()
        try harm(made)
        #expect(throws: error, "\(name)") { _ = try made.store.add(made.export) }
        #expect((made.kept ?? []).isEmpty, "\(name)")
        #expect(error.errorDescription?.hasSuffix(".") == true, "\(name)")
    }

    @Test func aFolderWithoutRoomForItIsRefusedBeforeItIsCopied() throws {
        let made = try ExportFixture()
        let needed = 2 * 3014 + ModelStore.spare
        let full = ModelStore(home: made.home, freeBytes: { _ in needed - 1 })
        #expect(throws: ImportError.noSpace(needed: needed, free: needed - 1)) { _ = try full.add(made.export) }
        #expect((made.kept ?? []).isEmpty)
        _ = try ModelStore(home: made.home, freeBytes: { _ in needed }).add(made.export)
    }

    @Test func theRoomOfThisDiskIsKnown() throws {
        let made = try ExportFixture()
        #expect(try #require(made.store.freeBytes(made.root)) > 0)
    }

    @Test func aFileIsNoFolder() throws {
        let made = try ExportFixture()
        #expect(throws: ImportError.notAFolder("golden.json")) { _ = try made.store.add(made.place("golden.json")) }
        #expect(throws: ImportError.notAFolder("nowhere")) { _ = try made.store.add(made.place("nowhere")) }
    }

    @Test func aCancelledImportLeavesNothing() async throws {
        let made = try ExportFixture()
        let (store, export) = (made.store, made.export)
        let told = Mutex(0)
        let task = Task {
            try store.add(export) { _ in
                told.withLock { $0 += 1 }
                withUnsafeCurrentTask { $0?.cancel() }
            }
        }
        await #expect(throws: CancellationError.self) { _ = try await task.value }
        #expect(made.kept == [] && told.withLock { $0 } == 1)
    }

    @Test func aFileThatGrowsWhileItIsCopiedIsRefused() throws {
        let made = try ExportFixture()
        let last = "tokenizer.model"
        #expect(throws: ImportError.wrongSize(last, bytes: 4, wanted: 3)) {
            _ = try made.store.add(made.export) { _ in try? made.write(last, [7, 7, 7, 7]) }
        }
        #expect(made.kept == [])
    }

    @Test func noMoreOfAFileIsReadThanItMayHold() throws {
        let made = try ExportFixture()
        #expect(throws: ImportError.wrongSize("tokenizer.model", bytes: 3, wanted: 2)) {
            try FileTree.read(made.export, "tokenizer.model", most: 2) { _ in Issue.record("it was taken") }
        }
    }

    @Test(arguments: [0, 1, 55, 56, 63, 64, 65, 119, 120, 3000]) func aHashDoesNotDependOnTheParts(count: Int) {
        let bytes = (0..<count).map { UInt8(truncatingIfNeeded: 7 * $0) }
        var parts = ImportSHA256()
        for start in stride(from: 0, to: count, by: 13) { parts.update(Array(bytes[start..<min(start + 13, count)])) }
        #expect(parts.hexadecimal() == ImportSHA256.hexadecimal(of: bytes))
    }

    @Test func aHashIsThatOfTheStandard() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        #expect(ImportSHA256.hexadecimal(of: Array("abc".utf8)) == abc && ImportSHA256.hexadecimal(of: []) == empty)
    }

    private static func replace(_ path: String, in fixture: ExportFixture, withLinkTo target: URL) throws {
        try FileManager.default.removeItem(at: fixture.place(path))
        try FileManager.default.createSymbolicLink(at: fixture.place(path), withDestinationURL: target)
    }
}
