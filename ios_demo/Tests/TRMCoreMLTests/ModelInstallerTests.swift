#if COREML_STUB
    import CoreMLStub
    import Foundation
    import Synchronization
    import Testing

    @testable import TRMCore
    @testable import TRMCoreML

    @Suite struct ModelInstallerTests {
        /// An export folder of the stand-in, as `convert` would write it, imported.
        private func imported(_ rig: Rig) throws -> InstalledModel {
            let export = rig.root.appendingPathComponent("export")
            let files: [String: Data] = [
                "Tiny.mlpackage/Manifest.json": Data("{}".utf8),
                "Tiny.mlpackage/Data/com.apple.CoreML/model.mlmodel": try JSONEncoder().encode(rig.program),
                "tokenizer.model": Data([1]),
            ]
            for (path, content) in files {
                let place = export.appendingPathComponent(path)
                let folder = place.deletingLastPathComponent()
                try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
                try content.write(to: place)
            }
            let records = files.keys.sorted().map { path in
                let content = [UInt8](files[path] ?? Data())
                let hash = ImportSHA256.hexadecimal(of: content)
                return #"{"path": "\#(path)", "bytes": \#(content.count), "sha256": "\#(hash)"}"#
            }
            let manifest = Rig.text(rig.program, files: records.joined(separator: ", "))
            try Data(manifest.utf8).write(to: export.appendingPathComponent(Manifest.fileName))
            return try ModelStore(home: rig.root.appendingPathComponent("home")).add(export)
        }

        /// Counts what it compiles.
        private final class Compiler: Sendable {
            private let made = Mutex(0)
            var count: Int { made.withLock { $0 } }

            func compile(_ package: URL) async throws -> URL {
                made.withLock { $0 += 1 }
                return try await CoreMLStepModel.compile(package)
            }
        }

        private func names(_ folder: URL) -> Set<String> {
            Set((try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? [])
        }

        @Test func anImportedModelRuns() async throws {
            let rig = try Rig()
            let loader = try await ModelInstaller().loader(for: try imported(rig))
            let model = try loader.load(preferring: .cpuAndNeuralEngine)
            #expect(try model.append(Rig.ids) == rig.program.scores(after: Rig.ids, depth: 2))
        }

        @Test func aPackageIsCompiledOnce() async throws {
            let (rig, compiler) = (try Rig(), Compiler())
            let model = try imported(rig)
            let installer = ModelInstaller(build: "1", compile: compiler.compile)
            let first = try await installer.compiled(model)
            let second = try await installer.compiled(model)
            #expect(compiler.count == 1 && first.place == second.place)
            #expect(try #require(first.duration) > .zero && second.duration == nil)
            #expect(names(model.folder.appendingPathComponent("device/1")) == ["Tiny.mlmodelc"])
            try ModelStore(home: rig.root.appendingPathComponent("home")).verify(model)
        }

        @Test func anotherSystemCompilesAnew() async throws {
            let (rig, compiler) = (try Rig(), Compiler())
            let model = try imported(rig)
            _ = try await ModelInstaller(build: "1", compile: compiler.compile).compiled(model)
            _ = try await ModelInstaller(build: "2", compile: compiler.compile).compiled(model)
            #expect(compiler.count == 2 && names(model.folder.appendingPathComponent("device")) == ["2"])
        }

        @Test func startingOverForgetsAll() async throws {
            let (rig, compiler) = (try Rig(), Compiler())
            let model = try imported(rig)
            let installer = ModelInstaller(build: "1", compile: compiler.compile)
            let loader = try await installer.loader(for: model)
            loader.sentinel.begin(.cpuOnly)
            installer.startOver(model)
            #expect(loader.sentinel.killers.isEmpty)
            _ = try await installer.compiled(model)
            #expect(compiler.count == 2)
        }

        @Test func twoThatCompileAtOnceAgree() async throws {
            let rig = try Rig()
            let model = try imported(rig)
            let installer = ModelInstaller()
            async let first = installer.compiled(model).place
            async let second = installer.compiled(model).place
            let (one, other) = try await (first, second)
            #expect(one == other && names(one) == ["program"])
            #expect(names(one.deletingLastPathComponent()) == ["Tiny.mlmodelc"])
        }

        @Test func aPackageThatDoesNotCompileLeavesNothing() async throws {
            let rig = try Rig()
            let model = try imported(rig)
            let installer = ModelInstaller(build: "1") { _ in throw StubError(reason: "no room") }
            await #expect(throws: EngineError.notCompiled(reason: "no room")) {
                _ = try await installer.compiled(model)
            }
            #expect(names(model.folder) == ["export"])
        }

        @Test func theSystemHasANameForAFolder() {
            let name = ModelInstaller.systemBuild
            #expect(!name.isEmpty && name.utf8.allSatisfy { $0 < 0x80 } && !name.contains("/") && !name.contains("."))
        }
    }
#endif
