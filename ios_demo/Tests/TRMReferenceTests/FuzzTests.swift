import Foundation
import TRMCore
import Testing

@testable import TRMReference

/// Numbers of a seed, so that a failure can be had again.
struct Seeded: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return state ^ state >> 29
    }
}

/// What is hostile must be refused, and never end the process.
@Suite struct FuzzTests {
    @Test(arguments: [UInt64(1), 2, 3]) func garbledWeightsAreRefusedOrRead(seed: UInt64) throws {
        let copy = try Copy(of: seed == 3 ? "lut" : "affine")
        let whole = [UInt8](try Data(contentsOf: copy.weights))
        let (header, data) = try copy.parts()
        var (random, refused) = (Seeded(state: seed), 0)
        for round in 0..<60 {
            var bytes = [UInt8](header.utf8)
            switch round % 3 {
            case 0:  // a byte of the header
                bytes[Int.random(in: 0..<bytes.count, using: &random)] = UInt8.random(in: 0...255, using: &random)
            case 1:  // a part of it twice
                let start = Int.random(in: 0..<bytes.count, using: &random)
                let end = Int.random(in: start...min(start + 40, bytes.count), using: &random)
                bytes.insert(contentsOf: bytes[start..<end], at: Int.random(in: 0..<bytes.count, using: &random))
            default:  // a digit, which leaves it JSON
                let digits = bytes.indices.filter { (0x30...0x39).contains(bytes[$0]) }
                let place = digits[Int.random(in: 0..<digits.count, using: &random)]
                bytes[place] = UInt8.random(in: 0x30...0x39, using: &random)
            }
            try copy.write(String(decoding: bytes, as: UTF8.self), data)
            do { _ = try ModelFolder(contentsOf: copy.folder) } catch is ModelFolderError { refused += 1 }
        }
        #expect(refused > 30)
        for _ in 0..<20 {
            try Data(whole.prefix(Int.random(in: 0..<whole.count, using: &random))).write(to: copy.weights)
            #expect(throws: ModelFolderError.self) { try ModelFolder(contentsOf: copy.folder) }
        }
    }

    @Test func garbledConfigsAreRefusedOrRead() throws {
        let copy = try Copy(of: "lut")
        let file = copy.folder.appendingPathComponent("config.json")
        let text = [UInt8](try Data(contentsOf: file))
        var random = Seeded(state: 4)
        for _ in 0..<300 {
            var bytes = text
            for _ in 0..<Int.random(in: 1...3, using: &random) {
                bytes[Int.random(in: 0..<bytes.count, using: &random)] = UInt8.random(in: 32...126, using: &random)
            }
            try Data(bytes).write(to: file)
            // Its hash would be reason enough; what is looked at before that must not trap.
            if bytes != text { #expect(throws: ModelFolderError.self) { try ModelFolder(contentsOf: copy.folder) } }
        }
    }

    @Test func garbledJSONIsRefusedOrRead() {
        let text = [UInt8](#"{"a": [1, -2.5e3, "x\u00e9\ud83d\ude00\n", null, true, false, {"b": {}}], "c": 0}"#.utf8)
        var (random, read) = (Seeded(state: 5), 0)
        for _ in 0..<1000 {
            var bytes = text
            bytes[Int.random(in: 0..<bytes.count, using: &random)] = UInt8.random(in: 0...255, using: &random)
            let cut = bytes.prefix(Int.random(in: 0...bytes.count * 3, using: &random))
            if (try? JSON(Array(cut))) != nil { read += 1 }
        }
        #expect((10..<700).contains(read))
    }

    @Test func nestingAndNumbersHaveLimits() throws {
        #expect(throws: JSON.Malformed.self) { try JSON([UInt8](repeating: UInt8(ascii: "["), count: 100_000)) }
        #expect(throws: JSON.Malformed.self) { try JSON([UInt8]("1e999".utf8)) }
        #expect(try JSON([UInt8]("9223372036854775808".utf8)) == .number(0x1p63))
        #expect(try JSON([UInt8]("-9223372036854775808".utf8)) == .integer(.min))
    }

    @Test(arguments: [
        "", " ", "01", "-", "1.", ".5", "1e", "+1", "NaN", "Infinity", "nul", "\"", "\"\\x\"", "\"\\ud800\"",
        "\"\\udc00\"",
        "\"\\ud800\\u0041\"", "\"\\u+123\"", "\"\u{1}\"", "[1,]", "[1 2]", "{\"a\":1,}", "{\"a\" 1}", "{a:1}",
        "{\"a\":1,\"a\":2}", "1 2", "[]]",
    ]) func whatIsNoJSONIsRefused(text: String) {
        #expect(throws: JSON.Malformed.self) { try JSON([UInt8](text.utf8)) }
    }

    @Test func textIsReadAsTheJSONThatItIs() throws {
        let text = #" {"a": [1, -2.5e3, "x\u00e9\ud83d\ude00\n\/", null, true], "": {}, "é": 1E2} "#
        let list: JSON = .list([.integer(1), .number(-2500), .text("xé😀\n/"), .null, .bool(true)])
        #expect(try JSON([UInt8](text.utf8)) == .table(["a": list, "": .table([:]), "é": .number(100)]))
        #expect(throws: JSON.Malformed.self) { try JSON([0x22, 0xff, 0x22]) }
    }
}
