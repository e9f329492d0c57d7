import SwiftUI
import TRMCoreML
import TRMDemoModel
import UniformTypeIdentifiers

/// The models there are, and the import of others.
struct ModelsView: View {
    @Environment(AppModel.self) private var app
    @State private var isChoosing = false

    var body: some View {
        @Bindable var writing = app.writing
        NavigationStack {
            List {
                Section {
                    ForEach(app.importing.models) { model in
                        NavigationLink {
                            ModelDetailView(model: model)
                        } label: {
                            VStack(alignment: .leading, spacing: 4) {
                                Text(verbatim: model.name).font(.headline)
                                Text(verbatim: app.summary(of: model)).font(.subheadline)
                            }
                        }
                    }
                    ImportStatus(importing: app.importing)
                    Button {
                        isChoosing = true
                    } label: {
                        Label("Add a model from Files", systemImage: "plus")
                    }
                    .disabled(!app.canChooseModel)
                    .accessibilityIdentifier("add")
                } footer: {
                    Text(
                        "Choose an export folder, which runs on Core ML, or a model folder, which the reference "
                            + "engine runs. Every file is checked.")
                }
                Section {
                    Picker("Processors", selection: $writing.units) {
                        ForEach(ComputeUnits.allCases, id: \.self) { units in
                            Text(verbatim: units.name).tag(units)
                        }
                    }
                    .disabled(!app.canChooseModel)
                } footer: {
                    Text("Where Core ML runs a model. If it fails there, the next ones are tried.")
                }
            }
            .navigationTitle("Models")
            .fileImporter(isPresented: $isChoosing, allowedContentTypes: [.folder]) { result in
                switch result {
                case .success(let folder): app.add(folder)
                case .failure(let error): app.importing.refuse(error)
                }
            }
        }
    }
}

private struct ImportStatus: View {
    let importing: ImportModel

    var body: some View {
        if !importing.status.isEmpty {
            VStack(alignment: .leading, spacing: 8) {
                Text(verbatim: importing.status)
                    .accessibilityAddTraits(.updatesFrequently)
                    .accessibilityIdentifier("import-status")
                if importing.isBusy {
                    ProgressView(value: importing.share)
                        .accessibilityHidden(true)
                    Button("Cancel") { importing.cancel() }
                        .buttonStyle(.bordered)
                }
            }
        }
    }
}

/// What the manifest says of a model.
struct ModelDetailView: View {
    let model: StoredModel
    @Environment(AppModel.self) private var app
    @Environment(\.dismiss) private var dismiss
    @State private var isAsking = false

    var body: some View {
        List {
            Section {
                Text(verbatim: app.summary(of: model))
                ForEach(app.notes(of: model), id: \.self) { note in
                    Text(verbatim: note)
                }
                Button("Write with this model") { app.choose(model) }
                    .disabled(!app.canChoose(model))
                Button("Remove", role: .destructive) { isAsking = true }
                    .disabled(!app.canChooseModel)
            }
            Section("Details") {
                ForEach(model.facts) { fact in
                    LabeledContent(fact.label, value: fact.value)
                        .textSelection(.enabled)
                }
            }
        }
        .navigationTitle(model.name)
        .navigationBarTitleDisplayMode(.inline)
        .confirmationDialog(
            "Remove this model from the app?", isPresented: $isAsking, titleVisibility: .visible
        ) {
            Button("Remove", role: .destructive) {
                app.remove(model)
                dismiss()
            }
        }
    }
}
