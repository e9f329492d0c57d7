import Foundation
import Testing

@testable import TRMCore

/// The vectors that Python wrote, so that both languages have the same ids and the same text.
@Suite struct TokenizerVectorTests {
    @Test func textsHaveTheIdsOfPython() throws {
        let file = try golden("tokenizer.json", Encoding.self)
        let tokenizers = try file.tokenizers.map(load)
        var wrong: [String] = []
        for text in file.texts {
            let tokenizer = tokenizers[text.tokenizer]
            let ids = tokenizer.encode(text.text)
            if ids != text.ids { wrong.append("\(text.text.debugDescription) gave \(ids), not \(text.ids)") }
            if try Array(tokenizer.decode(ids).utf8) != Array(text.text.utf8) {
                wrong.append("\(text.text.debugDescription) came back as another text")
            }
        }
        expectNone(wrong, of: file.texts.count, least: 1500)
    }

    @Test func bytesHaveTheIdsOfPython() throws {
        let file = try golden("tokenizer.json", Encoding.self)
        let tokenizers = try file.tokenizers.map(load)
        var wrong: [String] = []
        for row in file.bytes {
            let ids = tokenizers[row.tokenizer].encode(bytes(ofHexadecimal: row.bytes))
            if ids != row.ids { wrong.append("\(row.bytes) gave \(ids), not \(row.ids)") }
        }
        expectNone(wrong, of: file.bytes.count, least: 600)
    }

    @Test func aBookHasTheIdsOfPython() throws {
        let file = try golden("tokenizer.json", Encoding.self)
        let tokenizers = try file.tokenizers.map(load)
        for book in file.files {
            let ids = tokenizers[book.tokenizer].encode(try bytes(of: book.file))
            #expect(ids.count == book.count)
            let packed = ids.flatMap { withUnsafeBytes(of: $0.littleEndian, Array.init) }
            #expect(SHA256Hash.hexadecimal(of: packed) == book.sha256)
        }
        #expect(file.files.count == tokenizers.count)
    }

    @Test func chatsHaveTheIdsOfPython() throws {
        let file = try golden("tokenizer.json", Encoding.self)
        let tokenizers = try file.tokenizers.map(load)
        var wrong: [String] = []
        for chat in file.chats {
            let messages = try chat.messages.map {
                ChatMessage(role: try #require(ChatMessage.Role(rawValue: $0.role)), content: $0.content)
            }
            let found = outcome { try tokenizers[chat.tokenizer].chat(messages, reply: chat.reply) }
            if found != (chat.ids.map { .ids($0) } ?? .refused(chat.refused ?? "")) {
                wrong.append("\(chat.messages.map(\.role)) gave \(found)")
            }
        }
        expectNone(wrong, of: file.chats.count, least: 60)
    }

    @Test func idsStreamTheTextOfPython() throws {
        let file = try golden("tokenizer_decode.json", Decoding.self)
        let tokenizers = try file.tokenizers.map(load)
        var wrong: [String] = []
        for row in file.cases {
            let tokenizer = tokenizers[row.tokenizer]
            var stream = tokenizer.stream()
            let deltas = try row.ids.map { try stream.push($0) } + [stream.finish()]
            if deltas.map({ Array($0.utf8) }) != row.deltas.map({ Array($0.utf8) }) {
                wrong.append("\(row.ids) gave \(deltas), not \(row.deltas)")
            }
            if try Array(tokenizer.decode(row.ids).utf8) != Array(row.deltas.joined().utf8) {
                wrong.append("\(row.ids) decode to another text than they stream")
            }
        }
        expectNone(wrong, of: file.cases.count, least: 2000)
    }

    // Reading the files

    private struct Encoding: Decodable {
        let tokenizers: [Model]
        let texts: [TextCase]
        let bytes: [BytesCase]
        let files: [FileCase]
        let chats: [ChatCase]
    }

    private struct Decoding: Decodable {
        let tokenizers: [Model]
        let cases: [StreamCase]
    }

    private struct Model: Decodable {
        let file: String
        let sha256: String
        let vocabulary: Int
        let unknown, bos, eos, pad, user, assistant, end: Int32
    }

    private struct TextCase: Decodable {
        let tokenizer: Int
        let text: String
        let ids: [Int32]
    }

    private struct BytesCase: Decodable {
        let tokenizer: Int
        let bytes: String
        let ids: [Int32]
    }

    private struct FileCase: Decodable {
        let tokenizer: Int
        let file: String
        let count: Int
        let sha256: String
    }

    private struct ChatCase: Decodable {
        struct Message: Decodable {
            let role: String
            let content: String
        }
        let tokenizer: Int
        let messages: [Message]
        let reply: Bool
        let ids: [Int32]?
        let refused: String?
    }

    private struct StreamCase: Decodable {
        let tokenizer: Int
        let ids: [Int32]
        let deltas: [String]
    }

    private enum Outcome: Equatable {
        case ids([Int32])
        case refused(String)
    }

    private func outcome(_ chat: () throws -> [Int32]) -> Outcome {
        do {
            return .ids(try chat())
        } catch TokenizerError.roleOutOfTurn {
            return .refused("roleOutOfTurn")
        } catch TokenizerError.noUserMessage {
            return .refused("noUserMessage")
        } catch TokenizerError.replyWithoutQuestion {
            return .refused("replyWithoutQuestion")
        } catch {
            return .refused("\(error)")
        }
    }

    private func load(_ model: Model) throws -> Tokenizer {
        #expect(
            SHA256Hash.hexadecimal(of: try bytes(of: model.file)) == model.sha256,
            "\(model.file) is not the one of the vectors; run tests/golden/make_tokenizer.py")
        let tokenizer = try Tokenizer(contentsOf: goldenFolder.appending(path: model.file))
        #expect(tokenizer.vocabulary == model.vocabulary)
        let controls = [
            tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.user, tokenizer.assistant, tokenizer.end,
        ]
        #expect(controls == [model.bos, model.eos, model.pad, model.user, model.assistant, model.end])
        #expect(tokenizer.unknown == model.unknown)
        return tokenizer
    }

    private func bytes(of file: String) throws -> [UInt8] {
        Array(try Data(contentsOf: goldenFolder.appending(path: file)))
    }

    private func bytes(ofHexadecimal text: String) -> [UInt8] {
        let digits = text.utf8.compactMap { Character(UnicodeScalar($0)).hexDigitValue }
        return stride(from: 0, to: digits.count, by: 2).map { UInt8(digits[$0] << 4 | digits[$0 + 1]) }
    }

    private func expectNone(_ wrong: [String], of count: Int, least: Int) {
        #expect(count >= least)
        if !wrong.isEmpty {
            Issue.record("\(wrong.count) of \(count): \(wrong.prefix(5).joined(separator: "\n"))")
        }
    }
}
