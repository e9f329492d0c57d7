import SwiftUI
import TRMDemoModel

/// What the model writes, and what it is asked.
struct WritingView: View {
    @Environment(AppModel.self) private var app
    @State private var showsSettings = false

    var body: some View {
        NavigationStack {
            VStack(spacing: 0) {
                PageView(writing: app.writing)
                Divider()
                PromptView(writing: app.writing)
            }
            .navigationTitle("Write")
            .navigationBarTitleDisplayMode(.inline)
            .toolbar {
                ToolbarItem(placement: .topBarTrailing) {
                    Button {
                        showsSettings = true
                    } label: {
                        Label("Settings", systemImage: "slider.horizontal.3")
                    }
                    .accessibilityIdentifier("settings")
                }
            }
            .sheet(isPresented: $showsSettings) { SettingsView(writing: app.writing) }
        }
    }
}

/// The text, and its figures in a sentence.
private struct PageView: View {
    let writing: WritingModel

    var body: some View {
        ScrollView {
            VStack(alignment: .leading, spacing: 12) {
                Text(verbatim: writing.page.text)
                    .font(.body)
                    .textSelection(.enabled)
                    .accessibilityAddTraits(.updatesFrequently)
                    .accessibilityIdentifier("text")
                if let warning = writing.warning {
                    Label(warning, systemImage: "thermometer.high")
                }
                StatusView(writing: writing)
                Text(verbatim: writing.page.figures)
                    .font(.footnote)
                    .foregroundStyle(.secondary)
                    .accessibilityIdentifier("figures")
            }
            .frame(maxWidth: .infinity, alignment: .leading)
            .padding()
        }
        .defaultScrollAnchor(.bottom)
    }
}

private struct StatusView: View {
    let writing: WritingModel

    var body: some View {
        VStack(alignment: .leading, spacing: 8) {
            HStack(spacing: 8) {
                if writing.isBusy {
                    ProgressView().accessibilityHidden(true)
                }
                Text(verbatim: writing.status)
                    .font(.callout)
                    .accessibilityIdentifier("status")
            }
            if writing.canRetry {
                Button("Try again") { writing.retry() }
            }
        }
    }
}

/// Depth, prompt, and the button.
private struct PromptView: View {
    @Environment(AppModel.self) private var app
    @Bindable var writing: WritingModel

    var body: some View {
        VStack(alignment: .leading, spacing: 12) {
            if writing.depths.count > 1 {
                DepthSlider(writing: writing)
            }
            Picker("What to write", selection: $writing.settings.mode) {
                Text("Go on with a text").tag(WritingSettings.Mode.goOn)
                Text("Story from words").tag(WritingSettings.Mode.words)
            }
            .pickerStyle(.segmented)
            switch writing.settings.mode {
            case .goOn:
                TextField("Beginning of the text", text: $writing.prompt, axis: .vertical)
                    .lineLimit(1...4)
                    .textFieldStyle(.roundedBorder)
            case .words:
                TextField("Words of the story", text: $writing.words, axis: .vertical)
                    .lineLimit(1...4)
                    .textFieldStyle(.roundedBorder)
            }
            if writing.canStop {
                Button {
                    writing.stop()
                } label: {
                    Label("Stop", systemImage: "stop.fill").frame(maxWidth: .infinity)
                }
                .buttonStyle(.bordered)
                .accessibilityIdentifier("stop")
            } else {
                Button {
                    app.write()
                } label: {
                    Label("Write", systemImage: "pencil").frame(maxWidth: .infinity)
                }
                .buttonStyle(.borderedProminent)
                .disabled(!app.canWrite)
                .accessibilityIdentifier("write")
            }
        }
        .padding()
    }
}

private struct DepthSlider: View {
    @Bindable var writing: WritingModel

    var body: some View {
        VStack(alignment: .leading, spacing: 4) {
            Text(verbatim: writing.depthName)
                .font(.subheadline)
                .accessibilityHidden(true)
            Slider(value: $writing.depthPlace, in: 0...Double(writing.depths.count - 1), step: 1) {
                Text("Depth of thought")
            } minimumValueLabel: {
                Text("Less").font(.footnote)
            } maximumValueLabel: {
                Text("More").font(.footnote)
            }
            .accessibilityValue(writing.depthName)
            .accessibilityIdentifier("depth")
        }
    }
}
