import Foundation
import Synchronization
import TRMCore
import Testing

@testable import TRMDemoModel

/// A folder of a test, removed with it, and what lies in the repository.
final class Desk: Sendable {
    static let repository = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent()
    static let rope = repository.appendingPathComponent("tests/golden/reference/rope")

    let root = FileManager.default.temporaryDirectory.appendingPathComponent("trm-\(UUID().uuidString)")

    init() throws { try FileManager.default.createDirectory(at: root, withIntermediateDirectories: true) }

    deinit { try? FileManager.default.removeItem(at: root) }

    var places: AppModel.Places { places(bundled: nil) }

    func places(bundled: URL?) -> AppModel.Places {
        AppModel.Places(support: root, documents: root, bundled: bundled)
    }

    var settings: SettingsFile { SettingsFile(root.appendingPathComponent("settings.json")) }
    var library: ModelLibrary { ModelLibrary(home: root.appendingPathComponent("Models")) }

    /// A copy of a golden model folder.
    func modelFolder(_ name: String = "Fox") throws -> URL {
        let place = root.appendingPathComponent(name)
        try FileManager.default.copyItem(at: Self.rope, to: place)
        return place
    }

    /// Everything below a folder, by relative path.
    func paths(in folder: String) -> [String] {
        let place = root.appendingPathComponent(folder).path
        return (FileManager.default.enumerator(atPath: place)?.allObjects as? [String] ?? []).sorted()
    }

    /// The files that the app keeps of models.
    var kept: [String] {
        paths(in: "Models").filter {
            var isFolder: ObjCBool = false
            let path = root.appendingPathComponent("Models/\($0)").path
            return FileManager.default.fileExists(atPath: path, isDirectory: &isFolder) && !isFolder.boolValue
        }
    }
}

/// Sentences that were said.
@MainActor final class Speaker {
    private(set) var said: [String] = []
    func say(_ sentence: String) { said.append(sentence) }
}

/// A list that anybody may add to.
final class Log<Value: Sendable>: Sendable {
    private let held = Mutex<[Value]>([])
    var values: [Value] { held.withLock { $0 } }
    func add(_ value: Value) { held.withLock { $0.append(value) } }
}

/// Writes "abc…", whatever it reads, and logs what it is asked.
final class LetterModel: StepModel {
    struct Failure: LocalizedError { var errorDescription: String? { "The letters are used up." } }

    let (vocabulary, context, depths) = (320, 2000, [1, 2, 3])
    private(set) var position = 0
    private let letters: [Int32]
    private let log: Log<String>
    private let onStep: @Sendable (Int) throws -> Void
    private var step = 0

    init(_ tokenizer: Tokenizer, _ log: Log<String>, onStep: @escaping @Sendable (Int) throws -> Void) {
        letters = "abcdefghijklmnopqrstuvwxyz".flatMap { tokenizer.encode(String($0)).prefix(1) }
        (self.log, self.onStep) = (log, onStep)
    }

    func reset(depth: Int) {
        log.add("reset \(depth)")
        (position, step) = (0, 0)
    }

    func append(_ tokens: [Int32]) throws -> [Float] {
        if position == 0 || tokens.count > 1 { log.add("read \(tokens)") }
        try onStep(step)
        position += tokens.count
        var scores = [Float](repeating: 0, count: vocabulary)
        scores[Int(letters[step % letters.count])] = 1000
        step += 1
        return scores
    }
}

/// An engine of letters.
struct Letters: Sendable {
    let tokenizer: Tokenizer
    let log = Log<String>()

    init() throws { tokenizer = try Tokenizer(contentsOf: Desk.rope.appendingPathComponent("tokenizer.model")) }

    /// Loads a `LetterModel` for any model.
    func load(onStep: @escaping @Sendable (Int) throws -> Void = { _ in }) -> Engine.Load {
        let (tokenizer, log) = (tokenizer, log)
        return { _, _ in
            let generator = Generator(codec: tokenizer, pieceLength: 1000) {
                log.add("made")
                return LetterModel(tokenizer, log, onStep: onStep)
            }
            return Engine(generator: generator, tokenizer: tokenizer, limits: try await generator.prepare())
        }
    }

    var model: StoredModel {
        .folder(
            StoredFolder(
                folder: Desk.rope,
                record: FolderRecord(
                    name: "Letters", revision: "letters", fingerprint: "", parameters: 1, depth: 3, context: 2000,
                    vocabulary: 320, weightsBytes: 1)))
    }
}

/// Lets the test decide when something goes on. Waiting blocks a thread, so it is for threads of a model's own.
final class Gate: Sendable {
    private let semaphore = DispatchSemaphore(value: 0)
    func open() { semaphore.signal() }
    func wait() { semaphore.wait() }
}

/// Waits until something holds, and fails if it does not within ten seconds.
@MainActor func eventually(_ holds: () -> Bool, _ place: SourceLocation = #_sourceLocation) async {
    for _ in 0..<10_000 where !holds() { try? await Task.sleep(for: .milliseconds(1)) }
    #expect(holds(), sourceLocation: place)
}
