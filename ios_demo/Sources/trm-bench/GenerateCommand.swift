import Foundation
import TRMBenchKit
import TRMCore
import TRMDemoModel

/// `trm-bench generate`: writes on from a prompt, as `python -m trm_mlx.generate` does.
enum GenerateCommand {
    static let largestPrompt = 1 << 22  // bytes; far beyond any context

    static func run(_ words: [String]) async throws -> Int32 {
        let options = try GenerateOptions(words)
        let prompt = try options.prompt ?? read(options.promptFile)
        let model = ModelArgument(options.model)
        guard !model.isExport || ModelArgument.coreMLIsHere else { return refuseExport() }
        let stop = StopSignal()
        let interrupts = Interrupts(stop)  // before the model is loaded: an end halfway counts as a crash of Core ML
        defer { interrupts.end() }
        let engine = try await model.engine()
        if model.isExport { say(engine.place) }
        for note in engine.notes { say(note) }
        let tokenizer = engine.tokenizer
        let message = ChatMessage(role: .user, content: prompt)
        let text = options.chat ? try tokenizer.chat([message], reply: true) : tokenizer.encode(prompt)
        var reply = Reply(prompt: prompt, model: model.folder.standardizedFileURL.lastPathComponent, options.settings)
        var before = options.chat ? "" : prompt  // written with the first token, so that without one nothing is
        for try await event in engine.generator.generate([tokenizer.bos] + text, options.settings, stop: stop) {
            switch event {
            case .token(let id, let text):
                reply.add(id, text)
                guard !options.json else { break }
                try tell((before + text).utf8)
                before = ""
            case .finished(let summary): reply.end(summary)
            }
        }
        try tell(options.json ? reply.json() : Data("\n".utf8))
        say(reply.line)
        guard reply.reason == .stopped else { return Exit.done }
        say("trm-bench: interrupted")
        return Exit.interrupted
    }

    /// The prompt in a file, or on standard input.
    private static func read(_ file: String?) throws -> String {
        let name = file.flatMap { $0 == "-" ? nil : $0 } ?? "standard input"
        var handle = FileHandle.standardInput
        if let file, file != "-" {
            guard let opened = FileHandle(forReadingAtPath: file) else {
                throw UsageError("--prompt-file must name a file that can be read, got \(file.debugDescription)")
            }
            handle = opened
        } else if file == nil, isatty(STDIN_FILENO) != 0 {
            throw UsageError("give --prompt TEXT, --prompt-file FILE, or pipe text in")
        }
        guard var content = try? handle.read(upToCount: largestPrompt + 1) ?? Data() else {
            throw UsageError("\(name) cannot be read; give --prompt TEXT or --prompt-file FILE")
        }
        guard content.count <= largestPrompt else {
            throw UsageError("\(name) must be at most \(largestPrompt) bytes")
        }
        if content.last == UInt8(ascii: "\n") { content.removeLast() }  // which echo and editors add
        guard let text = String(validating: content, as: UTF8.self) else { throw UsageError("\(name) must be UTF-8") }
        return text
    }
}

/// Ctrl-C asks a text to stop; the second time it ends the program at once.
private final class Interrupts {
    private let source = DispatchSource.makeSignalSource(signal: SIGINT, queue: .global())

    init(_ stop: StopSignal) {
        signal(SIGINT, SIG_IGN)  // or it would end the program before the source is asked
        source.setEventHandler {
            stop.stop()
            signal(SIGINT, SIG_DFL)
        }
        source.resume()
    }

    func end() { source.cancel() }
}
