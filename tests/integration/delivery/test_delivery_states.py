class TestEach:
    def test_x(self, night, ris):
        assert night.onward(night.to_folder, "ris") == []
        assert night.states() == {"delivered": 5}
